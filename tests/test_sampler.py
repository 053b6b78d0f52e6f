"""Clicks against brute-force distances; random points against their distribution."""

import cv2
import numpy as np
import pytest
import torch

from sumlib import sampler
from sumlib.sampler import boundary_click, first_click, next_click, sample_point


def blobs(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """(count, height, width) bool, each with foreground."""
    noise = np.random.default_rng(seed).normal(size=(count, height, width)).astype(np.float32)
    return torch.from_numpy(np.stack([cv2.GaussianBlur(one, (0, 0), 2) > 0 for one in noise]))


def slow_depth(mask: np.ndarray) -> np.ndarray:
    """(H, W) squared distance to the nearest background pixel, border included, by trying them all."""
    padded = np.pad(mask, 1)
    pixels, outside = np.argwhere(np.ones_like(padded)), np.argwhere(~padded)
    squared = ((pixels[:, None] - outside[None]) ** 2).sum(-1).min(1)
    return squared.reshape(padded.shape)[1:-1, 1:-1]


def deepest(mask: np.ndarray) -> tuple[int, list[int]]:
    """Largest squared depth and its first pixel in row-major order as [x, y]."""
    depth = slow_depth(mask)
    y, x = divmod(int(depth.argmax()), mask.shape[1])
    return int(depth.max()), [x, y]


@pytest.mark.parametrize("pixels_per_call", [1, 700, 1 << 22])
def test_first_click_is_the_deepest_pixel(monkeypatch, pixels_per_call):
    monkeypatch.setattr(
        sampler, "_PIXELS_PER_CALL", pixels_per_call
    )  # the cutting into pieces changes nothing
    target = blobs(12, 15, 22, seed=0)
    points = first_click(target)
    assert points.dtype == torch.long and points.tolist() == [deepest(mask)[1] for mask in target.numpy()]


def test_first_click_counts_the_border_as_an_edge():
    assert first_click(torch.ones(1, 5, 9, dtype=torch.bool)).tolist() == [[2, 2]]


def test_next_click_corrects_the_deepest_error():
    target, prediction = blobs(20, 16, 16, seed=1), blobs(20, 16, 16, seed=2)
    points, labels = next_click(target, prediction)
    assert points.dtype == labels.dtype == torch.long and set(labels.tolist()) == {0, 1}
    for truth, guess, point, label in zip(
        target.numpy(), prediction.numpy(), points.tolist(), labels.tolist()
    ):
        missed, false = deepest(truth & ~guess), deepest(guess & ~truth)
        assert label == int(missed[0] > false[0])
        assert point == (missed if label else false)[1]


def test_next_click_by_hand():
    target = torch.zeros(4, 7, 12, dtype=torch.bool)
    target[:, 1:4, 1:4] = True
    prediction = target.clone()  # 0: perfect
    prediction[1] = False  # all missed
    prediction[2, 1:6, 6:11] = True  # only false foreground, 5 x 5
    prediction[3, 2, 2] = False  # one pixel missed, one false: a tie
    prediction[3, 5, 9] = True
    points, labels = next_click(target, prediction)
    assert points.tolist() == [[2, 2], [2, 2], [8, 3], [9, 5]] and labels.tolist() == [1, 1, 0, 0]


def test_clicks_need_foreground():
    empty = torch.zeros(2, 4, 4, dtype=torch.bool)
    empty[0, 1, 1] = True
    for click in (first_click, boundary_click, lambda target: next_click(target, target)):
        with pytest.raises(ValueError, match="mask 1 of 2 has no foreground"):
            click(empty)
    points, labels = next_click(empty, ~empty)  # an empty target with a prediction has something to correct
    assert labels.tolist() == [0, 0]


def test_boundary_click_is_distance_inside_the_edge():
    rows, columns = np.mgrid[:64, :64]
    disk = (rows - 31) ** 2 + (columns - 31) ** 2 <= 25**2
    for distance in (1, 2, 5, 10, 20):
        (point,) = boundary_click(torch.from_numpy(disk)[None], distance).tolist()
        assert abs(slow_depth(disk)[point[1], point[0]] ** 0.5 - distance) <= 0.5
        assert abs(point[1] - 31) <= 1  # the median row of a ring is the middle one


def test_boundary_click_on_thin_masks():
    target = torch.zeros(2, 30, 40, dtype=torch.bool)
    target[0, 5, 3:30] = True  # one pixel wide: the middle of the line
    target[1, 10:25, 10:30] = True  # 8 deep: 4 inside the edge
    points = boundary_click(target, distance=10)
    assert points[0].tolist() == [16, 5]
    assert slow_depth(target[1].numpy())[points[1, 1], points[1, 0]] == 16
    with pytest.raises(ValueError, match="at least 1"):
        boundary_click(target, distance=0)


def test_boundary_click_always_finds_a_pixel():
    target = blobs(30, 40, 40, seed=3)
    for distance in (1, 1.5, 3, 10):
        points = boundary_click(target, distance)
        assert target[torch.arange(30), points[:, 1], points[:, 0]].all()


def draws(region: torch.Tensor, certainty: torch.Tensor | None, count: int) -> torch.Tensor:
    """(H, W) share of each pixel among `count` draws from one region (H, W)."""
    certainty = None if certainty is None else certainty.expand(count, *region.shape)
    generator = torch.Generator().manual_seed(0)
    points, found = sample_point(region.expand(count, *region.shape), certainty, generator=generator)
    assert found.all() and points.dtype == torch.long
    flat = points[:, 1] * region.shape[1] + points[:, 0]
    return torch.bincount(flat, minlength=region.numel()).reshape(region.shape) / count


def test_sample_point_follows_the_certainty():
    region = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1]]).bool()
    certainty = torch.tensor([[0.1, 0.9, 1.0, 0.0], [1.0, 0.5, 0.2, 0.3], [1e-3, 0.7, 1.0, 0.6]])
    for weight in (None, certainty, certainty.bfloat16()):
        expected = region * (1.0 if weight is None else weight.float())
        expected = expected / expected.sum()
        share = draws(region, weight, 40_000)
        assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / 40_000).sqrt() + 1e-12).all()
        assert not share[expected == 0].any()


def test_sample_point_does_not_miss_the_last_pixel_or_tiny_weights():
    region = torch.ones(2, 50, 50, dtype=torch.bool)
    certainty = torch.zeros(2, 50, 50)
    certainty[0, 49, 49], certainty[1, 0, 0] = 1e-6, 1.0
    points, found = sample_point(region, certainty, generator=torch.Generator().manual_seed(1))
    assert points.tolist() == [[49, 49], [0, 0]] and found.all()


def test_sample_point_finds_the_least_certainty_that_is_not_zero():
    region = torch.ones(3, 5, 5, dtype=torch.bool)
    certainty = torch.zeros(3, 5, 5, dtype=torch.float64)
    certainty[0, 1, 2], certainty[1, 3, 4] = 2.0**-34, 1e-300
    points, found = sample_point(region, certainty, generator=torch.Generator().manual_seed(1))
    assert found.tolist() == [True, True, False] and points[:2].tolist() == [[2, 1], [4, 3]]


def test_sample_point_says_where_nothing_was_found():
    region = torch.ones(4, 3, 3, dtype=torch.bool)
    region[1] = False  # empty
    certainty = torch.ones(4, 3, 3)
    certainty[2] = 0  # nothing certain
    region[3], certainty[3] = False, 0
    points, found = sample_point(region, certainty, generator=torch.Generator().manual_seed(0))
    assert found.tolist() == [True, False, False, False] and not points[1:].any()
    points, found = sample_point(region[:0], generator=torch.Generator())
    assert points.shape == (0, 2) and found.shape == (0,)


def test_sample_point_uses_the_generator_only():
    region = blobs(50, 16, 16, seed=4)
    first, again = (sample_point(region, generator=torch.Generator().manual_seed(5))[0] for _ in range(2))
    other = sample_point(region, generator=torch.Generator().manual_seed(6))[0]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert region[torch.arange(50), first[:, 1], first[:, 0]].all()


def test_sample_point_with_full_certainty_is_uniform_sampling():
    region = blobs(50, 16, 16, seed=4)
    plain, weighted = (
        sample_point(region, certainty, generator=torch.Generator().manual_seed(5))[0]
        for certainty in (None, torch.ones(50, 16, 16))
    )
    assert torch.equal(plain, weighted)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_sample_point_refuses_what_is_no_certainty(value):
    region = torch.ones(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="certainty"):
        sample_point(region, torch.full((1, 2, 2), value), generator=torch.Generator())
    with pytest.raises(ValueError, match="certainty"):
        sample_point(region, torch.ones(1, 2, 3), generator=torch.Generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_points():
    target, prediction = blobs(20, 32, 32, seed=7), blobs(20, 32, 32, seed=8)
    certainty = torch.rand(20, 32, 32, generator=torch.Generator().manual_seed(0))
    for function, tensors in (
        (first_click, (target,)),
        (boundary_click, (target, 3)),
        (lambda *both: torch.cat(list(map(torch.Tensor.flatten, next_click(*both)))), (target, prediction)),
        (
            lambda *both: sample_point(*both, generator=torch.Generator().manual_seed(1))[0],
            (target, certainty),
        ),
    ):
        moved = function(*(one.cuda() if isinstance(one, torch.Tensor) else one for one in tensors))
        assert moved.is_cuda and torch.equal(moved.cpu(), function(*tensors))
