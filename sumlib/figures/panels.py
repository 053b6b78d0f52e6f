"""The picture panel: image, SAM's mask, its uncertainty, SUM's mask, the truth."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from sumlib.figures.pictures import dot, overlay
from sumlib.figures.style import BLUE, GREEN, ORANGE, new_figure, styled

TITLES = {
    "image": "Image and prompt",
    "sam": "SAM",
    "uncertainty": "Uncertainty",
    "sum": "SUM",
    "truth": "Truth",
}
"""Keys of a row -> titles of the columns."""
_COLOURS = {"sam": ORANGE, "sum": BLUE, "truth": GREEN}


@styled
def sum_panel(rows: Sequence[Mapping]) -> Figure:
    """Image, SAM's mask, the uncertainty map, SUM's mask and the truth, a row an example.

    Each row: "image" (H, W, 3) uint8, "sam", "sum", "truth" (H, W) bool, "uncertainty" (H, W) float in [0,
    1], "sam_iou" and "sum_iou" in [0, 1]; optional "point" (x, y) in pixels and "name" (str). Masks are drawn
    over the greyed image, their IoU stands below them. Raises ValueError where sizes differ.
    """
    figure = new_figure(8.6, 1.78 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), len(TITLES), squeeze=False)
    for axes, title in zip(grid[0], TITLES.values()):
        axes.set_title(title, fontweight="bold", pad=4)
    for line, row in zip(grid, rows):
        sizes = {key: np.shape(row[key])[:2] for key in TITLES}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"panel row {row.get('name', '')!r}: pictures of different size {sizes}")
        for axes, key in zip(line, TITLES):
            _picture(axes, row, key)
        if "point" in row:
            dot(line[0], *row["point"])
        line[0].set_ylabel(row.get("name", ""), fontsize=7.5)
    _scale(figure, grid[-1], list(TITLES).index("uncertainty"))
    return figure


def _picture(axes, row: Mapping, key: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
    for spine in axes.spines.values():
        spine.set(color="#BBBBBB", linewidth=0.6)
    if key in _COLOURS:
        axes.imshow(overlay(np.asarray(row["image"]), np.asarray(row[key], bool), _COLOURS[key]))
    else:
        axes.imshow(np.asarray(row[key]), cmap="magma", vmin=0, vmax=1)
    if f"{key}_iou" in row:
        axes.set_xlabel(f"IoU {100 * row[f'{key}_iou']:.0f}", fontsize=7.5, labelpad=2)


def _scale(figure: Figure, line: Sequence, maps: int) -> None:
    """The colours of the uncertainty, below ``line``, the last row of axes; ``maps`` is its map's number."""
    bar = figure.colorbar(
        line[maps].images[0],
        ax=list(line),  # space is taken from all alike, so that the line stays one
        location="bottom",
        ticks=[0, 0.5, 1],
        shrink=0.17,
        aspect=22,
        pad=0.03,
    )
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=6.5, length=1.5, pad=1)
