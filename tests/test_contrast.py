"""U2PL's contrastive term, by hand and in its direction."""

import math

import pytest
import torch
from torch.nn import functional as F

from sumlib.methods.u2pl import contrastive_loss


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(certain: float = 1.0):
    """One image of 2 x 2 cells of 4 x 4 pixels, the mask its left half."""
    target = torch.zeros(1, 8, 8, dtype=torch.bool)
    target[:, :, :4] = True
    return torch.zeros(1, dtype=torch.long), target, torch.full((1, 8, 8), certain)


def test_by_hand():
    image, target, certainty = scene()
    left, right = F.normalize(torch.tensor([3.0, 1.0]), dim=0), F.normalize(torch.tensor([1.0, 2.0]), dim=0)
    embedding = torch.stack([3 * left, 7 * right], 1)[None, :, None, :].expand(
        1, 2, 2, 2
    )  # both cells of a column are alike
    found = contrastive_loss(
        embedding, image, target, certainty, generator=rng(), anchors=3, negatives=5, temperature=0.5
    )
    same, other = math.exp(1 / 0.5), math.exp(float(left @ right) / 0.5)
    assert found.item() == pytest.approx(-math.log(same / (same + 5 * other)))


def test_its_gradient_separates_mask_and_background():
    image, target, certainty = scene()
    embedding = torch.randn(1, 4, 2, 2, generator=rng(1)).requires_grad_()
    before = contrastive_loss(embedding, image, target, certainty, generator=rng())
    before.backward()
    with torch.no_grad():
        after = contrastive_loss(embedding - 0.1 * embedding.grad, image, target, certainty, generator=rng())
    assert after < before and embedding.grad.abs().sum() > 0


def test_uncertain_foreground_is_no_anchor_and_uncertain_background_is_a_negative():
    image, target, certainty = scene()
    certainty[:, :4, :4] = 0.1  # the upper left cell
    embedding = torch.randn(1, 4, 2, 2, generator=rng(2)).requires_grad_()
    contrastive_loss(embedding, image, target, certainty, generator=rng()).backward()
    moved = embedding.grad.abs().sum(1)[0] > 0
    assert moved.tolist() == [[False, True], [True, True]]
    certainty[:, :, 4:] = 0.1  # all background
    again = embedding.detach().clone().requires_grad_()
    contrastive_loss(again, image, target, certainty, generator=rng()).backward()
    assert torch.equal(again.grad, embedding.grad)


@pytest.mark.parametrize("case", ["no certain foreground", "no background"])
def test_a_mask_without_both_does_not_count(case):
    image, target, certainty = scene(0.5 if case == "no certain foreground" else 1.0)
    if case == "no background":
        target[:] = True
    embedding = torch.randn(1, 4, 2, 2, generator=rng()).requires_grad_()
    loss = contrastive_loss(embedding, image, target, certainty, generator=rng())
    loss.backward()
    assert loss.item() == 0 and not embedding.grad.any()
    both = [torch.cat(pair) for pair in zip((image, target, certainty), scene())]
    alone = contrastive_loss(embedding, *scene(), generator=rng())
    assert contrastive_loss(embedding, *both, generator=rng()).item() == pytest.approx(alone.item())
