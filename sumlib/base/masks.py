"""Masks: boxes, run-length codes, resizing and padding, connected components, boundaries.

Batches of masks are boolean torch tensors (N, H, W) on any device. What is read from or written to disk one
mask at a time (RLE, components, images) is numpy, (H, W). Coordinates are pixels, x to the right, y down.
"""

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from scipy import ndimage
from segment_anything.utils.amg import batched_mask_to_box
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

MAX_PIXELS = 2**28
"""Largest height x width that a run-length code may state: 16384 x 16384."""
POLYGON_REACH = 10
"""How many image sizes (longer side) a corner of a polygon may lie from the image's origin."""


def require_masks(**masks: Tensor) -> None:
    """Check that every named tensor is a boolean batch (N, H, W) and that all have the same shape.

    Raises:
        ValueError: naming the argument and what to do. Shapes are never broadcast: (N, 1, H, W) against (N,
            H, W) would silently compare every mask with every other.
    """
    first = next(iter(masks))
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(
                f"{name} must be a bool tensor, got {mask.dtype}: binarise it first (logits > 0)"
            )
        if mask.ndim != 3:
            raise ValueError(f"{name} must have the shape (N, H, W), got {tuple(mask.shape)}")
        if mask.shape != masks[first].shape:
            raise ValueError(
                f"{name} {tuple(mask.shape)} and {first} {tuple(masks[first].shape)} differ in shape"
            )


def mask_box(masks: Tensor) -> Tensor:
    """Tight boxes of masks, as SAM's own `batched_mask_to_box`.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 4) float32, XYXY in pixels: the indices of the first and last foreground column and row, both
        inclusive (a single pixel has a box of width 0). An empty mask gives [0, 0, 0, 0], which is also the
        box of the single pixel (0, 0): sort empty masks out beforehand where the difference matters.

    >>> mask_box(torch.tensor([[[0, 0, 0], [0, 1, 1]]]).bool()).tolist()
    [[1.0, 1.0, 2.0, 1.0]]
    """
    require_masks(masks=masks)
    return batched_mask_to_box(masks).float()  # (N, 4)


def jittered_boxes(masks: Tensor, generator: torch.Generator, jitter: float) -> Tensor:
    """Box prompts of masks (N, S, S) bool: (N, 4) XYXY, each side moved by up to ``jitter`` of the box's
    size, both ways.
    """
    box = mask_box(masks)
    size = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    return (box + (2 * torch.rand(box.shape, generator=generator).to(box.device) - 1) * jitter * size).clamp(
        0, masks.shape[-1] - 1
    )


def rle_encode(mask: np.ndarray) -> dict:
    """COCO's compressed run-length code of one mask, JSON-ready as in SA-1B's annotation files.

    Args:
        mask: (H, W) bool (or 0/1).

    Returns:
        {"size": [H, W], "counts": str}.

    >>> rle_encode(np.eye(2, dtype=bool))
    {'size': [2, 2], 'counts': '0120'}
    """
    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def rle_decode(rle: dict) -> np.ndarray:
    """Mask of a COCO run-length code, compressed (string) or not (list of run lengths).

    Everything is checked before pycocotools sees it, which would crash or fill the mask with uninitialised
    memory.

    Args:
        rle: {"size": [H, W], "counts": str, bytes or list of int}.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: the size is not that of an image, or the counts are broken or do not belong to the size.

    >>> rle_decode({"size": [2, 2], "counts": "0120"}).astype(int).tolist()
    [[1, 0], [0, 1]]
    """
    height, width = _rle_size(rle.get("size"))
    total = run_total(rle.get("counts"))
    if total != height * width:
        raise ValueError(
            "its run lengths are broken"
            if total < 0
            else f"its run lengths cover {total} pixels, but its size is {height} x {width}"
        )
    if isinstance(rle["counts"], list):
        rle = coco.frPyObjects(rle, height, width)
    return coco.decode(rle).astype(bool)  # (H, W)


def _rle_size(size: object) -> tuple[int, int]:
    """Height and width of a run-length code. Raises ValueError unless they are those of an image."""
    sides = list(size) if isinstance(size, (list, tuple)) else []
    if len(sides) != 2 or not all(_is_whole(side) and side > 0 for side in sides):
        raise ValueError(f"the size of its run lengths is {size!r}; it must be [height, width] in pixels")
    if sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"the size of its run lengths is {size!r}, more than {MAX_PIXELS} pixels")
    return int(sides[0]), int(sides[1])


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def run_total(counts: object) -> int:
    """Number of pixels that the run lengths of an RLE cover, -1 if they are broken.

    pycocotools fills what a truncated RLE leaves open with uninitialised memory, so this is checked first.

    >>> run_total("0120"), run_total([0, 1, 2, 1]), run_total("01"), run_total([0.5, 3.5]), run_total("")
    (4, 4, 1, -1, -1)
    """
    if isinstance(counts, list):
        return sum(counts) if counts and all(_is_whole(n) and n >= 0 for n in counts) else -1
    if not isinstance(counts, (str, bytes)) or not counts:
        return -1
    text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    # six bits a character: five of the number, one that says "more follows"
    ends = np.flatnonzero(codes & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32 or lengths.max() > 6:
        return -1
    place = np.arange(len(codes)) - np.repeat(ends - lengths + 1, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * place, ends - lengths + 1)
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)  # sign of the number
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()  # differences to two before
    return int(runs.sum()) if runs.min() >= 0 else -1


def polygon_mask(polygons: list, height: int, width: int) -> np.ndarray:
    """Mask (H, W) bool of COCO polygons [x, y, x, y ...], filled and joined.

    Those of fewer than three corners are ignored; no polygon gives an empty mask. Every coordinate is checked
    before pycocotools sees it, which would crash on one that is not finite or very large.

    Raises:
        ValueError: a polygon is no list of x, y pairs, or a corner lies more than `POLYGON_REACH` image sizes
            outside.

    >>> polygon_mask([[0, 0, 2, 0, 2, 1, 0, 1]], 2, 3).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    reach = POLYGON_REACH * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise ValueError("a polygon is no list of x, y, x, y ...")
        wrong = [
            v
            for v in polygon
            if isinstance(v, bool) or not isinstance(v, (int, float)) or not abs(v) <= reach
        ]
        if wrong:
            raise ValueError(
                f"a polygon's corner has the coordinate {wrong[0]!r}, "
                f"no number near the image of {height} x {width}"
            )
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), bool)
    return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)


def longest_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) in pixels after scaling the longest side to `side`, rounded as SAM does.

    >>> longest_side_size(300, 400, 64)
    (48, 64)
    """
    return ResizeLongestSide.get_preprocess_shape(height, width, side)


def resize_longest_side(image: np.ndarray, side: int) -> np.ndarray:
    """Image scaled so that its longest side has `side` pixels, exactly as SAM does (bilinear, antialiased).

    Args:
        image: (H, W, 3) uint8 RGB.
        side: pixels.

    Returns:
        (h, w, 3) uint8, with (h, w) = `longest_side_size(H, W, side)`.
    """
    return ResizeLongestSide(side).apply_image(image)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, K, h, w) float -> (N, K, *size), bilinear; those that have this size already as they are."""
    return (
        maps
        if tuple(maps.shape[-2:]) == tuple(size)
        else F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
    )


def framed(maps: np.ndarray, side: int) -> Tensor:
    """Maps (K, H, W) bool or float in the model's frame, (K, side, side) float32.

    The longest side is resized to `side` (bilinear), zeros are added right and below.
    """
    size = longest_side_size(*maps.shape[1:], side)
    whole = resized(torch.from_numpy(maps).float()[:, None], size)[:, 0]
    return whole if size == (side, side) else pad_to_square(whole, side)


def framed_masks(masks: np.ndarray, side: int) -> tuple[Tensor, np.ndarray]:
    """Masks (K, H, W) bool in the model's frame, (K, side, side) bool, and which of them are still there,
    (K,) bool.

    A mask of few pixels in a large image vanishes: it must not be trained as an empty one.

    >>> masks = np.zeros((2, 2000, 2000), bool)
    >>> masks[0, :3, :3], masks[1, :300, :300] = True, True
    >>> framed_masks(masks, 64)[1].tolist()
    [False, True]
    """
    targets = framed(masks, side) > 0.5
    return targets, targets.flatten(1).any(1).numpy()


def pad_to_square(pixels: Tensor, side: int) -> Tensor:
    """Zeros added on the right and at the bottom, as SAM does.

    Args:
        pixels: (..., h, w), h and w at most `side`.

    Returns:
        (..., side, side).

    Raises:
        ValueError: the input is larger than `side`.

    >>> pad_to_square(torch.ones(1, 2), 2).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    height, width = pixels.shape[-2:]
    if max(height, width) > side:
        raise ValueError(f"cannot pad {height} x {width} to {side} x {side}: resize it first")
    return F.pad(pixels, (0, side - width, 0, side - height))


def connected_components(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Connected foreground components.

    Args:
        mask: (H, W) bool.
        connectivity: 4 or 8 neighbours (SAM's clean-up uses 8).

    Returns:
        labels (H, W) int32, 0 for background and 1..K for the components in row-major order of their first
        pixel, and areas (K,) int64 in pixels, `areas[k - 1]` for label k.

    Raises:
        ValueError: connectivity is neither 4 nor 8.

    >>> labels, areas = connected_components(np.array([[1, 0, 1], [1, 0, 0]], dtype=bool))
    >>> labels.tolist(), areas.tolist()
    ([[1, 0, 2], [1, 0, 0]], [2, 1])
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity}")
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(2, connectivity // 4))
    return labels, np.bincount(labels.ravel())[1:]


def erode(masks: Tensor, width: int) -> Tensor:
    """Erosion by a (2 width + 1)-pixel square, i.e. `width` erosions by 3 x 3 ones; outside the image is
    background.

    Args:
        masks: (N, H, W) bool.
        width: pixels, 0 or more.

    Returns:
        (N, H, W) bool.

    >>> erode(torch.ones(1, 3, 3, dtype=torch.bool), 1).int().tolist()
    [[[0, 0, 0], [0, 1, 0], [0, 0, 0]]]
    """
    require_masks(masks=masks)
    padded = F.pad(masks, (width, width, width, width))  # (N, H + 2 width, W + 2 width)
    return _all_in_window(_all_in_window(padded, 2 * width + 1, dim=2), 2 * width + 1, dim=1)  # (N, H, W)


def dilate(masks: Tensor, width: int) -> Tensor:
    """Dilation by a (2 width + 1)-pixel square: (N, H, W) bool -> (N, H, W) bool, `width` in pixels.

    >>> dilate(torch.tensor([[[1, 0, 0]]]).bool(), 1).int().tolist()
    [[[1, 1, 0]]]
    """
    require_masks(masks=masks)
    padded = F.pad(~masks, (width, width, width, width), value=True)
    return ~_all_in_window(_all_in_window(padded, 2 * width + 1, dim=2), 2 * width + 1, dim=1)  # (N, H, W)


def _all_in_window(masks: Tensor, window: int, dim: int) -> Tensor:
    """Conjunction of `window` neighbours along `dim`, which shrinks by window - 1; log2(window) passes."""
    span = 1  # masks[i] holds the conjunction of the pixels i .. i + span - 1
    while span < window:
        step = min(span, window - span)
        length = masks.shape[dim] - step
        masks = masks.narrow(dim, 0, length) & masks.narrow(dim, step, length)
        span += step
    return masks


def boundary_width(height: int, width: int, dilation_ratio: float = 0.02) -> int:
    """Width of the boundary in pixels for boundary IoU: max(1, round(ratio * image diagonal)).

    >>> boundary_width(64, 64), boundary_width(10, 10)
    (2, 1)
    """
    return max(1, round(dilation_ratio * float(np.hypot(height, width))))


def inner_boundary(masks: Tensor, width: int) -> Tensor:
    """The mask's own pixels within `width` of its edge (the image's border is an edge): mask minus eroded
    mask.

    Args:
        masks: (N, H, W) bool.
        width: pixels, 0 or more.

    Returns:
        (N, H, W) bool.

    >>> inner_boundary(torch.ones(1, 3, 3, dtype=torch.bool), 1).int().tolist()
    [[[1, 1, 1], [1, 0, 1], [1, 1, 1]]]
    """
    return masks & ~erode(masks, width)


def boundary_band(masks: Tensor, width: int) -> Tensor:
    """Pixels within `width` of the edge on either side: dilated minus eroded mask, (N, H, W) bool -> (N, H,
    W) bool.

    >>> boundary_band(torch.tensor([[[0, 0, 0, 0, 1]]]).bool(), 1).int().tolist()
    [[[0, 0, 0, 1, 1]]]
    """
    return dilate(masks, width) & ~erode(masks, width)
