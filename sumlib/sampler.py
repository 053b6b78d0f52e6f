"""Point prompts: deterministic clicks for evaluation, random ones for training.

Points are (x, y) pixel indices. Clicks follow docs/method.md §8 and RITM's reference clicker
(docs/datasets.md, evaluation conventions): exact Euclidean distances with the image's border as an edge, ties
go to the first pixel in row-major order. Random points follow docs/method.md §5.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from sumlib.base.masks import require_masks

_PIXELS_PER_CALL = 1 << 22  # bounds the memory of one distance transform (a batch is cut into such pieces)
_FIXED_POINT = 1 << 32  # resolution of the sampling weights


def first_click(target: Tensor) -> Tensor:
    """The foreground pixel farthest from the mask's edge.

    Args:
        target: (N, H, W) bool, each mask with foreground.

    Returns:
        (N, 2) long, (x, y), on the target's device.

    Raises:
        ValueError: not bool, or a mask is empty.

    >>> first_click(torch.tensor([[[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]]).bool())
    tensor([[1, 2]])
    """
    require_masks(target=target)
    depth = _squared_depth(target)  # (N, H * W)
    _require_foreground(depth)
    return _to_points(depth.argmax(axis=1), target)


def next_click(target: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """The click that corrects the largest error: the missed or false foreground pixel farthest from its
    region's edge.

    The region whose deepest pixel is deeper wins; at equal depth it is the false foreground (as in RITM).
    Where the prediction is perfect there is nothing to correct: `first_click(target)`, positive.

    Args:
        target: (N, H, W) bool.
        prediction: (N, H, W) bool.

    Returns:
        points (N, 2) long, (x, y), and labels (N,) long, 1 for missed foreground, 0 for false foreground;
        both on the target's device.

    Raises:
        ValueError: not bool, shapes differ, or target and prediction are both empty.

    >>> next_click(torch.tensor([[[1, 1, 0]]]).bool(), torch.tensor([[[1, 0, 0]]]).bool())
    (tensor([[1, 0]]), tensor([1]))
    """
    require_masks(target=target, prediction=prediction)
    missed, false = np.split(
        _squared_depth(torch.cat([target & ~prediction, prediction & ~target])), 2
    )  # (N, H * W)
    positive = missed.max(axis=1) > false.max(axis=1)  # (N,)
    depth = np.where(positive[:, None], missed, false)
    perfect = ~depth.any(axis=1)  # (N,)
    if perfect.any():
        depth[perfect] = _squared_depth(target[torch.from_numpy(perfect).to(target.device)])
        _require_foreground(depth)
    labels = torch.from_numpy(positive | perfect).long().to(target.device)
    return _to_points(depth.argmax(axis=1), target), labels


def boundary_click(target: Tensor, distance: float = 10) -> Tensor:
    """A foreground pixel about `distance` pixels inside the mask's edge: the median of all such pixels.

    "Such pixels" have a distance to the nearest background pixel (or the image's border) within half a pixel
    of `distance`; their median is the middle one in row-major order (the lower of two), so it is one of them
    even where their mean is not, as in a ring. In a mask that is nowhere `distance` deep they are those at
    half of its own greatest depth (at least 1), which stay near the edge. Source: docs/method.md §8, Table
    5; the paper does not define the median of points or the thin masks, both are this module's choice.

    Args:
        target: (N, H, W) bool, each mask with foreground.
        distance: pixels, at least 1.

    Returns:
        (N, 2) long, (x, y), on the target's device.

    Raises:
        ValueError: not bool, a mask is empty, or distance < 1.

    >>> boundary_click(torch.ones(1, 5, 5, dtype=torch.bool), distance=2)  # the ring around the middle pixel
    tensor([[1, 2]])
    """
    require_masks(target=target)
    if distance < 1:
        raise ValueError(f"distance must be at least 1 pixel, got {distance}")
    depth = _squared_depth(target)  # (N, H * W)
    _require_foreground(depth)
    depth = np.sqrt(depth)
    deepest = depth.max(axis=1, keepdims=True)  # (N, 1)
    wanted = np.where(deepest >= distance, distance, np.maximum(deepest / 2, 1))
    # Neighbours differ by at most 1 in depth, so every depth from 1 to the deepest is met within half a
    # pixel.
    rank = (np.abs(depth - wanted) <= 0.5).cumsum(axis=1)  # (N, H * W)
    return _to_points((rank == (rank[:, -1:] + 1) // 2).argmax(axis=1), target)


def sample_point(
    region: Tensor, certainty: Tensor | None = None, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One random pixel of each region, pixel i with probability c_i / sum_j c_j (uniformly without
    certainty).

    The weights are fixed-point numbers (2^-32), whose sums are exact on every device: a pixel of weight 0 is
    never drawn, and the same generator gives the same points on CPU and GPU. Certainty that is smaller but
    not 0 counts as 2^-32.

    Args:
        region: (N, H, W) bool.
        certainty: (N, H, W) in [0, 1], or None.
        generator: source of the N random numbers; may live on another device than the region.

    Returns:
        points (N, 2) long, (x, y), and found (N,) bool, on the region's device. Where found is False the
        region is empty or has no certain pixel: the point is (0, 0) and the caller falls back to its own.

    Raises:
        ValueError: region not bool, shapes differ, or certainty outside [0, 1].

    >>> region = torch.tensor([[[0, 1, 1]], [[0, 0, 0]]]).bool()
    >>> sample_point(region, torch.tensor([[[1.0, 0.0, 0.5]]] * 2), generator=torch.Generator())
    (tensor([[2, 0],
            [0, 0]]), tensor([ True, False]))
    """
    require_masks(region=region)
    weights = region.long() if certainty is None else _certain_weights(region, certainty)
    cumulative = weights.flatten(1).cumsum(1)  # (N, H * W)
    total = cumulative[:, -1:]  # (N, 1)
    uniform = torch.rand(len(region), 1, generator=generator, device=generator.device, dtype=torch.float64)
    draw = (uniform.to(region.device) * total).long().minimum(total - 1)  # (N, 1) in 0 .. total - 1
    index = torch.searchsorted(cumulative, draw, right=True)[
        :, 0
    ]  # (N,) first pixel whose sum exceeds the draw
    found = total[:, 0] > 0
    index = index.where(found, 0)
    width = region.shape[2]
    return torch.stack([index % width, index // width], dim=1), found


def _certain_weights(region: Tensor, certainty: Tensor) -> Tensor:
    """Certainty inside the region as fixed-point numbers, (N, H, W) long."""
    if certainty.shape != region.shape:
        raise ValueError(
            f"certainty {tuple(certainty.shape)} and region {tuple(region.shape)} differ in shape"
        )
    if certainty.numel() and not (certainty.min() >= 0 and certainty.max() <= 1):  # NaN fails too
        raise ValueError("certainty must be in [0, 1]: it is 1 - uncertainty, not a logit and not 8-bit")
    weights = (certainty.double() * _FIXED_POINT).round().long()
    return weights.maximum((certainty > 0).long()) * region


def _squared_depth(regions: Tensor) -> np.ndarray:
    """Squared Euclidean distance of each pixel to the nearest one outside the region or the image, 0 outside
    it.

    The masks of a batch are stacked into one tall image with empty rows between them, which is exact (no
    pixel is nearer to another mask than to the row between) and saves a call for each.

    Args:
        regions: (N, H, W) bool.

    Returns:
        (N, H * W) float32, whole numbers: equal distances compare equal whatever the rounding of the root
        was.
    """
    count, height, width = regions.shape
    depth = np.empty((count, height, width), np.float32)
    step = max(1, _PIXELS_PER_CALL // (height * width + 1))
    pixels = regions.cpu().numpy()
    for start in range(0, count, step):
        chunk = pixels[start : start + step]
        tall = np.zeros((len(chunk) * (height + 1) + 1, width + 2), np.uint8)
        tall[:-1].reshape(len(chunk), height + 1, width + 2)[:, 1:, 1:-1] = chunk
        distance = cv2.distanceTransform(tall, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        depth[start : start + step] = distance[:-1].reshape(len(chunk), height + 1, width + 2)[:, 1:, 1:-1]
    return np.rint(depth * depth).reshape(count, height * width)


def _require_foreground(depth: np.ndarray) -> None:
    empty = np.flatnonzero(~depth.any(axis=1))
    if len(empty):
        raise ValueError(f"no click can be placed: target mask {empty[0]} of {len(depth)} has no foreground")


def _to_points(index: np.ndarray, target: Tensor) -> Tensor:
    """(N,) flat row-major indices -> (N, 2) long (x, y) on the target's device."""
    rows, columns = np.divmod(index, target.shape[2])
    return torch.from_numpy(np.stack([columns, rows], axis=1)).long().to(target.device)
