"""Metrics: against the definition, executed slowly with OpenCV."""

import cv2
import numpy as np
import pytest
import torch

from sumlib.metrics import boundary_iou, mask_iou


def blobs(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """(count, height, width) bool: blobs of several scales that touch the border; the first two are empty and
    full.
    """
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, height, width)).astype(np.float32)
    masks = np.stack([cv2.GaussianBlur(one, (0, 0), rng.uniform(0.5, 5)) > 0 for one in noise])
    masks[0], masks[1] = False, True
    return torch.from_numpy(masks)


def slow_iou(pred: np.ndarray, target: np.ndarray) -> float:
    union = np.logical_or(pred, target).sum()
    return np.logical_and(pred, target).sum() / union if union else 1.0


def slow_boundary(mask: np.ndarray, ratio: float) -> np.ndarray:
    """The definition of docs/datasets.md: 1-px zero border, d erosions by 3 x 3 ones, mask - eroded."""
    iterations = max(1, int(round(ratio * np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=iterations)[1:-1, 1:-1]
    return mask.astype(np.uint8) - eroded


@pytest.mark.parametrize("height, width", [(64, 64), (33, 80), (150, 200)])
@pytest.mark.parametrize("ratio", [0.02, 0.005, 0.05])
def test_equal_to_the_definition(height, width, ratio):
    pred, target = blobs(16, height, width, seed=0), blobs(16, height, width, seed=1).roll(1, 0)
    pred[2], target[2] = False, False
    iou = [slow_iou(p, t) for p, t in zip(pred.numpy(), target.numpy())]
    biou = [
        slow_iou(slow_boundary(p, ratio), slow_boundary(t, ratio))
        for p, t in zip(pred.numpy(), target.numpy())
    ]
    assert mask_iou(pred, target).tolist() == np.float32(iou).tolist()
    assert boundary_iou(pred, target, dilation_ratio=ratio).tolist() == np.float32(biou).tolist()


def test_empty_and_identical_masks():
    masks = blobs(4, 20, 20, seed=2)
    for metric in (mask_iou, boundary_iou):
        assert metric(masks, masks).tolist() == [1, 1, 1, 1]
        assert metric(masks[:1], masks[1:2]).tolist() == [0] and metric(masks[1:2], masks[:1]).tolist() == [0]
        assert metric(masks[:0], masks[:0]).shape == (0,)


def test_boundary_iou_sees_only_the_boundary():
    solid = torch.zeros(1, 64, 64, dtype=torch.bool)
    solid[0, 8:56, 8:56] = True
    hollow = solid.clone()
    hollow[0, 20:44, 20:44] = False
    outer = 48**2 - 44**2  # d = 2
    assert boundary_iou(hollow, solid).item() == pytest.approx(outer / (outer + 28**2 - 24**2))


@pytest.mark.parametrize("metric", [mask_iou, boundary_iou])
def test_bad_input_is_refused(metric):
    masks = blobs(2, 8, 8, seed=0)
    with pytest.raises(ValueError, match="bool"):
        metric(masks.float(), masks)
    with pytest.raises(ValueError, match="shape"):
        metric(masks, masks[:1])
