"""One picture of some images with their masks, to see at a glance that they were understood."""

import math
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sumlib.base.masks import longest_side_size
from sumlib.data.dataset import Sample
from sumlib.figures.style import save
from sumlib.pipeline.own.data import OwnData

SIDE = 360
"""Longest side of one image in the picture, in pixels."""


def write_contact_sheet(data: OwnData, path: Path, count: int = 12, columns: int = 4) -> Path:
    """Write up to ``count`` good images, evenly spaced over both parts, with their masks as PNG.

    Each mask has a colour and an outline; held-out images say so. Raises ValueError if there is no good one.
    """
    held, train = data.held_out.good(), data.train.good()
    few = min(len(held), max(count // 4, count - len(train)))
    chosen = [(train[i], False) for i in _spread(len(train), count - few)]
    chosen += [(held[i], True) for i in _spread(len(held), few)]
    if not chosen:
        raise ValueError(f"{data.train.name}: no good image with a mask to show")
    names = {number: name for name, number in data.tasks.items()}
    columns = min(columns, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.75 * rows + 0.3), layout="constrained")
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.set_axis_off()
    for axes, (sample, kept) in zip(grid.flat, chosen):
        axes.imshow(painted(sample), interpolation="nearest")
        number = len(sample.masks)
        title = f"{number} {names.get(int(sample.task), '')} mask{'s' * (number != 1)}"
        title += ", held out" if kept else ""
        axes.set_title(f"{_short(sample.name)}\n{title}", fontsize=7.5, parse_math=False)
    figure.suptitle(f"{data.train.name}: images with their masks as understood", fontsize=9)
    return save(figure, path, dpi=130)


def _spread(total: int, count: int) -> list[int]:
    """Up to ``count`` numbers below ``total``, evenly spaced."""
    return list(dict.fromkeys(np.linspace(0, total - 1, min(count, total)).astype(int).tolist()))


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"...{name[3 - most :]}"


def painted(sample: Sample) -> np.ndarray:
    """The image, at most `SIDE` pixels long, with its masks in colours: (h, w, 3) uint8."""
    height, width = sample.image.shape[:2]
    size = longest_side_size(height, width, SIDE)
    way = cv2.INTER_AREA if size[0] < height else cv2.INTER_NEAREST
    picture = cv2.resize(sample.image, size[::-1], interpolation=way).astype(np.float32)
    colours = matplotlib.colormaps["hsv"](np.linspace(0, 1, len(sample.masks) + 1)[:-1])[:, :3] * 255
    for mask, colour in zip(sample.masks, colours):
        small = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        picture = np.where(small[..., None] > 0, 0.6 * picture + 0.4 * colour, picture)
        outlines = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
        picture = np.ascontiguousarray(picture, np.float32)
        cv2.drawContours(picture, outlines, -1, colour.tolist(), 2)
    return picture.clip(0, 255).astype(np.uint8)
