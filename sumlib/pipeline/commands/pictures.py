"""Pictures that commands write: masks, label maps, maps of certainty, masks over the image."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from sumlib.base.files import whole

LEAST_SIDE = 512
"""Overlays of smaller images are enlarged about to this."""
INSIDE, OUTSIDE, BOX = (60, 220, 90), (235, 50, 50), (255, 215, 0)


def save_picture(path: Path, values: np.ndarray) -> Path:
    """Write (H, W) or (H, W, 3) uint8, or (H, W) uint16 as PNG, as a whole or not at all."""
    with whole(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")
    return path


def mask_picture(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) uint8, 255 inside."""
    return mask.astype(np.uint8) * 255


def map_picture(values: np.ndarray) -> np.ndarray:
    """(H, W) float in [0, 1] -> (H, W) uint8, 255 for 1."""
    return (values * 255).round().clip(0, 255).astype(np.uint8)


def label_map(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Masks (H, W) bool -> (H, W) uint16: k + 1 in the k-th mask, 0 in none; small masks lie on large ones.

    >>> label_map([np.array([[1, 0, 0]], bool), np.array([[1, 1, 0]], bool)], (1, 3)).tolist()
    [[1, 2, 0]]
    """
    labels = np.zeros(size, np.uint16)
    for k in _large_first(masks):
        labels[masks[k]] = k + 1
    return labels


def overlay_picture(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    *,
    points: Sequence[tuple[float, float, int]] = (),
    box: Sequence[float] | None = None,
) -> np.ndarray:
    """The image (H, W, 3) uint8 with its masks (H, W) bool in colours and outlined, ``points`` x, y, label
    and a ``box`` XYXY: (H', W', 3) uint8.
    """
    picture = image.astype(np.float32)
    for k in _large_first(masks):
        inner = cv2.erode(masks[k].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        picture[masks[k]] = 0.45 * picture[masks[k]] + 0.55 * colour(k)
        picture[masks[k] & ~inner] = colour(k)
    drawn = Image.fromarray(picture.round().astype(np.uint8))
    scale = max(1, round(LEAST_SIDE / max(drawn.size)))
    drawn = drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.NEAREST)
    pen, radius = ImageDraw.Draw(drawn), max(3, max(drawn.size) // 120)
    if box is not None:
        pen.rectangle([(v + 0.5) * scale for v in box], outline=BOX, width=max(2, radius // 2))
    for x, y, label in points:
        x, y = (x + 0.5) * scale, (y + 0.5) * scale
        corners = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(corners, fill=INSIDE if label else OUTSIDE, outline="white", width=max(1, radius // 3))
    return np.asarray(drawn)


def colour(k: int) -> np.ndarray:
    """A strong colour (3,) for the k-th mask; neighbours in number differ much."""
    hue = (0.58 + k * 0.618034) % 1  # steps of the golden ratio spread evenly
    return 255 * np.array(colorsys.hsv_to_rgb(hue, 0.85, 1.0))


def _large_first(masks: Sequence[np.ndarray]) -> list[int]:
    return sorted(range(len(masks)), key=lambda k: -int(masks[k].sum()))
