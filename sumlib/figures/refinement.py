"""Figures of the mask-refinement module: certainty against correctness, and masks before and after (Figure
9)."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sumlib.figures.style import BLUE, GROUP_TITLES, INK, ORANGE, PALE, new_figure, styled


@styled
def certainty_vs_correctness(bins: Sequence[Mapping], threshold: float = 0.6) -> Figure:
    """How often a pixel of SAM's mask is right, by its certainty c, and how many pixels have that certainty
    (docs/method.md section 3).

    `bins`: dicts with "low", "high" (certainty), "pixels", "correct" (counts), in order; `threshold` is theta
    of the UA-dice loss.
    """
    low, high, pixels, correct = (
        np.array([b[key] for b in bins], float) for key in ("low", "high", "pixels", "correct")
    )
    figure = new_figure(4.6, 4.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
    share, middle = (
        np.divide(100 * correct, pixels, out=np.full_like(pixels, np.nan), where=pixels > 0),
        (low + high) / 2,
    )
    top.plot(middle, share, color=BLUE, marker="o")
    top.axhline(50, color="#999999", linewidth=0.7, linestyle=(0, (2, 2)))
    top.set(ylabel="correct pixels (%)", ylim=(0, 104))
    for chosen, x, y, align in (
        (low >= threshold - 1e-9, 1.0, 8, "right"),
        (low < threshold - 1e-9, 0.0, 92, "left"),
    ):
        if pixels[chosen].sum():
            value = 100 * correct[chosen].sum() / pixels[chosen].sum()
            side = f"c > {threshold:g}" if align == "right" else f"c ≤ {threshold:g}"
            top.text(x, y, f"{side}: {value:.1f} % correct", ha=align, color=INK, fontweight="bold")
    bottom.bar(middle, 100 * pixels / max(pixels.sum(), 1), width=(high - low) * 0.9, color=PALE)
    bottom.set(
        ylabel="pixels (%)",
        yscale="log",
        xlabel="certainty  c = 1 − |sigmoid(s) − sigmoid(r)|",
        xlim=(-0.02, 1.02),
    )
    bottom.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    for axes in (top, bottom):
        axes.axvline(threshold, color=ORANGE, linewidth=1)
    top.annotate(
        f"θ = {threshold:g}", (threshold, 102), (4, 0), textcoords="offset points", color=ORANGE, va="top"
    )
    return figure


@styled
def refined_vs_sam_by_level(levels: Mapping[str, Mapping]) -> Figure:
    """Figure 9: each mask's IoU (above) and boundary IoU (below) before and after refinement, by level.

    `levels[level]`: equally long lists "sam_iou", "refined_iou", "sam_biou", "refined_biou" in [0, 1]. Points
    above the diagonal got better.
    """
    figure = new_figure(2.45 * len(levels) + 0.5, 5.2)
    grid = figure.subplots(2, len(levels), squeeze=False, sharex=True, sharey=True)
    for c, (level, masks) in enumerate(levels.items()):
        for axes, (key, name) in zip(grid[:, c], (("iou", "IoU"), ("biou", "boundary IoU"))):
            before, after = (
                100 * np.asarray(masks[f"sam_{key}"], float),
                100 * np.asarray(masks[f"refined_{key}"], float),
            )
            axes.plot([0, 100], [0, 100], color="#999999", linewidth=0.8, zorder=1)
            axes.scatter(before, after, s=9, color=BLUE, alpha=0.35, linewidth=0, zorder=2)
            axes.plot(
                before.mean(),
                after.mean(),
                marker="P",
                color=ORANGE,
                markeredgecolor="white",
                markersize=9,
                zorder=3,
            )
            axes.set(
                xlim=(0, 101),
                ylim=(0, 101),
                aspect="equal",
                xticks=range(0, 101, 25),
                yticks=range(0, 101, 25),
            )
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
            axes.text(
                4,
                96,
                f"mean {before.mean():.1f} → {after.mean():.1f}",
                va="top",
                color="#B34700",
                fontweight="bold",
                bbox=box,
            )
            axes.text(
                97,
                5,
                f"better {100 * np.mean(after > before):.0f} %, worse {100 * np.mean(after < before):.0f} %",
                ha="right",
                bbox=box,
            )
            if c == 0:
                axes.set_ylabel(f"refined mask: {name} (%)")
        grid[0, c].set_title(GROUP_TITLES.get(level, level), fontweight="bold")
        grid[1, c].set_xlabel("SAM's mask (%)")
    return figure
