"""The EMA teacher, AugSeg's views and the agreement of two models."""

import torch
from small import small_sum

from sumlib.base.masks import mask_box
from sumlib.config.params import load_config
from sumlib.methods.augseg import strong_view
from sumlib.methods.discrepancy import agreement
from sumlib.methods.teacher import Teacher
from sumlib.model.prompts import Prompts

AUGSEG = load_config("smoke").finetune.augseg


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int = 2) -> torch.Tensor:
    """Images of 24 x 32 in a frame of 32 x 32."""
    found = torch.randn(count, 3, 32, 32, generator=rng(7))
    found[:, :, 24:] = 0
    return found


def masks(count: int = 60) -> torch.Tensor:
    found = torch.zeros(count, 32, 32, dtype=torch.bool)
    found[:, 4:12, 6:20] = True
    return found


def test_the_teacher_is_the_average_of_its_students():
    student = small_sum(0)
    teacher = Teacher(student, 0.9)
    weight = student.sam.mask_decoder.mask_tokens.weight
    seen, expected = [], None
    for step in range(15):
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=rng(step)))
        teacher.follow(student)
        seen.append(weight.detach().clone())
        momentum = min(0.9, 1 - 1 / (step + 1))
        expected = seen[-1] if expected is None else momentum * expected + (1 - momentum) * seen[-1]
        if step == 5:
            assert torch.allclose(
                expected, torch.stack(seen).mean(0), atol=1e-5
            )  # the first steps weigh alike
    assert torch.allclose(teacher.model.sam.mask_decoder.mask_tokens.weight, expected, atol=1e-5)
    assert not any(p.requires_grad for p in teacher.model.parameters()) and all(
        p.requires_grad for p in student.parameters()
    )


def test_a_saved_teacher_goes_on_where_it_was():
    first, second = Teacher(small_sum(0), 0.9), Teacher(small_sum(1), 0.9)
    first.follow(small_sum(2))
    second.load_state_dict(first.state_dict())
    for teacher in (first, second):
        teacher.follow(small_sum(3))
    assert (
        all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
        and int(second.steps) == 2
    )


def test_strong_view_changes_images_but_not_padding_and_not_always():
    images = pixels(40)
    view = strong_view(images, rng(), AUGSEG)
    changed = (view != images).flatten(1).any(1)
    assert not view[:, :, 24:].any() and 30 < changed.sum() < 40 and view.isfinite().all()
    assert torch.equal(view, strong_view(images, rng(), AUGSEG)) and not torch.equal(
        view, strong_view(images, rng(1), AUGSEG)
    )


@torch.no_grad()
def test_prediction_is_the_output_with_the_largest_predicted_iou():
    model = small_sum(4)
    teacher, image = Teacher(model, 0.9), torch.tensor([0, 1, 1])
    xy, codes = mask_box(masks(3)).view(-1, 2, 2), torch.tensor([[2, 3]]).expand(3, -1)
    logits, score = model.decode_codes(model.encode(pixels())[image], xy, codes)
    best = score[:, 1:].argmax(1)
    assert torch.equal(
        teacher.predict(pixels(), image, Prompts(xy, codes)), logits[:, 1:][torch.arange(3), best] > 0
    )


@torch.no_grad()
def test_agreement_is_one_with_oneself_and_less_with_another():
    student, another, image, target = small_sum(4), small_sum(5), torch.tensor([0, 1]), masks(2)
    teacher = Teacher(student, 0.9)
    mine = (teacher.model, teacher.encode(pixels()))
    assert (agreement((student, student.encode(pixels())), mine, image, target) == 1).all()
    certainty = agreement((another, another.encode(pixels())), mine, image, target)
    assert certainty.shape == target.shape and 0 <= certainty.min() < 0.9 and certainty.max() <= 1
