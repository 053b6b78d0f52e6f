"""Mask IoU and boundary IoU, one value a mask (docs/method.md §8; docs/datasets.md)."""

import torch
from torch import Tensor

from sumlib.base.masks import boundary_width, inner_boundary, require_masks


def mask_iou(pred: Tensor, target: Tensor) -> Tensor:
    """Intersection over union.

    Args:
        pred: (N, H, W) bool.
        target: (N, H, W) bool.

    Returns:
        (N,) float32 in [0, 1]; two empty masks agree: 1.

    Raises:
        ValueError: not bool, or shapes differ.

    >>> pred = torch.tensor([[[1, 1, 0]], [[0, 0, 0]]]).bool()
    >>> mask_iou(pred, torch.tensor([[[0, 1, 1]], [[0, 0, 0]]]).bool())
    tensor([0.3333, 1.0000])
    """
    require_masks(pred=pred, target=target)
    intersection = (pred & target).flatten(1).sum(1)  # (N,)
    union = (pred | target).flatten(1).sum(1)  # (N,)
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def boundary_iou(pred: Tensor, target: Tensor, dilation_ratio: float = 0.02) -> Tensor:
    """Intersection over union of the two masks' inner boundaries, d = max(1, round(ratio * diagonal)) pixels
    wide.

    As HQ-SAM computes it: the image's border counts as an edge, and there is no minimum with the mask IoU,
    which COCO's variant takes.

    Args:
        pred: (N, H, W) bool.
        target: (N, H, W) bool, at the same resolution; the width follows from it.
        dilation_ratio: boundary width as a share of the image's diagonal.

    Returns:
        (N,) float32 in [0, 1]; two empty boundaries agree: 1.

    Raises:
        ValueError: not bool, or shapes differ.

    >>> full = torch.ones(1, 3, 3, dtype=torch.bool)
    >>> hole = full.clone()
    >>> hole[0, 1, 1] = False
    >>> boundary_iou(full, hole), mask_iou(full, hole)
    (tensor([1.]), tensor([0.8889]))
    """
    require_masks(pred=pred, target=target)
    width = boundary_width(*pred.shape[-2:], dilation_ratio)
    return mask_iou(inner_boundary(pred, width), inner_boundary(target, width))
