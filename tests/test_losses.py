"""Losses: against torchvision, hand-computed values and equations 1 and 2 written out."""

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from sumlib import losses
from sumlib.losses import dice_loss, focal_loss


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits, target, certainty, each (4, 9, 11)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, 11, generator=generator) * 4
    target = torch.rand(4, 9, 11, generator=generator) > 0.5
    return logits, target, torch.rand(4, 9, 11, generator=generator)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.7, 1.0)])
def test_focal_is_torchvisions(batch, alpha, gamma):
    logits, target, certainty = batch
    reference = sigmoid_focal_loss(logits, target.float(), alpha=alpha, gamma=gamma)
    torch.testing.assert_close(focal_loss(logits, target, alpha=alpha, gamma=gamma), reference.mean((1, 2)))
    weighted = focal_loss(logits, target, certainty, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(weighted, (certainty * reference).mean((1, 2)))


def test_dice_is_equation_2(batch):
    logits, target, certainty = batch
    p, y, certain = logits.sigmoid(), target.float(), certainty > 0.6
    for i in range(len(logits)):
        overlap = (p * y)[i][certain[i]].sum()
        total = (p + y)[i][certain[i]].sum()
        torch.testing.assert_close(dice_loss(*batch)[i], 1 - (2 * overlap + 1) / (total + 1))
    torch.testing.assert_close(
        dice_loss(logits, target)[0], 1 - (2 * (p * y)[0].sum() + 1) / ((p + y)[0].sum() + 1)
    )


def test_dice_threshold_is_strict_and_moves():
    logits, target = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    certainty = torch.tensor([[[0.5, 0.25]]])
    assert dice_loss(logits, target, certainty, threshold=0.5).tolist() == [0.0]  # no certain pixel
    assert dice_loss(logits, target, certainty, threshold=0.25, smooth=0.0).item() == pytest.approx(
        1 - 1 / 1.5
    )
    assert dice_loss(logits, target, certainty, threshold=0.0, smooth=0.0).item() == pytest.approx(1 - 1 / 2)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_certainty_is_the_plain_loss_exactly(batch, loss, dtype):
    plain, weighted = batch[0].to(dtype).requires_grad_(), batch[0].to(dtype).requires_grad_()
    first, second = loss(plain, batch[1]), loss(weighted, batch[1], torch.ones_like(batch[2]))
    assert first.shape == (4,) and torch.equal(first, second)
    first.sum().backward(), second.sum().backward()
    assert torch.equal(plain.grad, weighted.grad) and plain.grad.dtype == dtype


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_gradients(batch, loss):
    logits, target, certainty = (tensor[:1, :3, :3] for tensor in batch)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, certainty), logits.double().requires_grad_())
    weight = certainty.clone().requires_grad_()
    loss(logits.clone().requires_grad_(), target, weight).sum().backward()
    assert weight.grad is None  # a constant


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_uncertain_pixels_get_no_gradient(batch, loss):
    logits, target, _ = batch
    certainty = torch.ones_like(logits)
    certainty[:, :, :5] = 0
    logits = logits.clone().requires_grad_()
    loss(logits, target, certainty).sum().backward()
    assert not logits.grad[:, :, :5].any() and logits.grad[:, :, 5:].any()


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_bf16_is_computed_in_float32(batch, loss):
    logits, target, certainty = batch
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, target, certainty)
    assert value.dtype == torch.float32 and torch.equal(value, loss(half.float(), target, certainty))


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_extreme_logits_stay_finite(loss):
    logits = torch.tensor([[[1e4, -1e4, 1e4, -1e4]]]).requires_grad_()
    value = loss(logits, torch.tensor([[[True, False, False, True]]]))
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_shapes_are_never_broadcast(batch, loss):
    logits, target, certainty = batch
    with pytest.raises(ValueError, match="target"):
        loss(logits, target[:1])
    with pytest.raises(ValueError, match="certainty"):
        loss(logits, target, certainty[:, :1])
    with pytest.raises(ValueError, match="logits"):
        loss(logits[:, None], target[:, None])


@pytest.mark.parametrize("extreme", [3e38, float("inf")])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_and_infinite_logits_weigh_what_their_certainty_says(batch, extreme, sign):
    logits, target, certainty = batch
    logits, certainty = logits.clone(), certainty.clone()
    expected = []
    for replacement in (0.0, sign * extreme):
        logits[:, 2:5, 3] = replacement
        certainty[:, 2:5, 3] = 0
        leaf = logits.clone().requires_grad_()
        loss = focal_loss(leaf, target, certainty) + dice_loss(leaf, target, certainty)
        loss.sum().backward()
        expected.append((loss, leaf.grad))
    assert torch.equal(expected[0][0], expected[1][0])
    torch.testing.assert_close(expected[0][1], expected[1][1])
    wrong = focal_loss(torch.full((1, 100, 100), sign * extreme), torch.full((1, 100, 100), sign < 0))
    assert wrong.isfinite().all() and wrong > 1e28  # certain and wrong: a huge loss
    right = focal_loss(torch.full((1, 100, 100), sign * extreme), torch.full((1, 100, 100), sign > 0))
    assert right == 0


def test_a_logit_that_is_no_number_is_not_hidden(batch):
    logits, target, certainty = batch
    logits = logits.clone()
    logits[0, 0, 0] = float("nan")
    assert (
        focal_loss(logits, target, certainty)[0].isnan()
        and focal_loss(logits, target, certainty)[1:].isfinite().all()
    )


def test_the_bound_changes_no_bit_of_common_logits_nor_of_their_gradients(batch, monkeypatch):
    logits, target, certainty = batch

    def outcome():
        leaf = logits.clone().requires_grad_()
        scaled = leaf * 1.7
        loss = 20 * focal_loss(scaled, target, certainty) + dice_loss(scaled, target, certainty)
        loss.sum().backward()
        return loss, leaf.grad

    bounded = outcome()
    monkeypatch.setattr(losses, "_prepare", lambda logits, target, weight: (logits, target.float(), weight))
    assert all(torch.equal(one, two) for one, two in zip(bounded, outcome()))
