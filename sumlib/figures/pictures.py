"""Pictures for notebooks: masks over images, maps, rows of titled panels."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sumlib.figures.style import BLUE, GREEN, ORANGE, YELLOW

__all__ = ["BLUE", "GREEN", "ORANGE", "YELLOW", "dot", "overlay", "panels"]
"""Blue marks predictions, orange SAM, green the truth and yellow prompts."""


def overlay(image: np.ndarray, mask: np.ndarray, colour: str = BLUE) -> np.ndarray:
    """The mask in its colour over the greyed image: (H, W, 3) uint8 and (H, W) bool -> (H, W, 3) float in [0,
    1].

    >>> overlay(np.zeros((1, 2, 3), np.uint8), np.array([[False, True]]), "white").round(2).tolist()
    [[[0.55, 0.55, 0.55], [0.9, 0.9, 0.9]]]
    """
    base = 0.55 + 0.45 * image.mean(-1, keepdims=True).repeat(3, -1) / 255
    return np.where(mask[..., None], 0.22 * base + 0.78 * np.array(to_rgb(colour)), base)


def panels(
    rows: Sequence[Mapping[str, np.ndarray]], size: float = 1.7, points: Sequence[tuple[float, float]] = ()
) -> Figure:
    """Rows of pictures {title: picture}, titles over the pictures; ``figure.axes`` holds them row by row.

    A picture is an image (H, W, 3), or a map (H, W) in [0, 1], dark to bright. ``size`` is one picture's, in
    inches.
    """
    columns = max(len(row) for row in rows)
    figure, grid = plt.subplots(
        len(rows),
        columns,
        figsize=(size * columns, (size + 0.25) * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for axes, row in zip(grid, rows):
        for place, (title, picture) in zip(axes, row.items()):
            place.imshow(picture, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            place.set_title(title, fontsize=8)
    for place in grid.flat:
        place.set_axis_off()
    for axes, point in zip(grid[:, 0], points):
        dot(axes, *point)
    return figure


def dot(axes, x: float, y: float, colour: str = YELLOW) -> None:
    """Mark the pixel (x, y)."""
    axes.plot(x, y, marker="*", markersize=10, color=colour, markeredgecolor="black", markeredgewidth=0.7)
