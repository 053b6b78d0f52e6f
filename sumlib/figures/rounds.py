"""Scores over the rounds (Figures 14, 17, 18) and what uncertainty-aware sampling gains (Figure 15), beside
the paper's.

Functions take aggregated scores (`sumlib.report.results.aggregate`, points).
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sumlib.figures.style import (
    BLUE,
    GREY,
    GROUP_TITLES,
    GROUPS,
    INK,
    LOOKS,
    PALE,
    SAM,
    SUM,
    heading,
    new_figure,
    styled,
)
from sumlib.report.results import METRICS, dataset_order, over_seeds
from sumlib.report.tables import paper_tables

ABLATION = [
    SAM,
    ("Vanilla", "FT-Medium"),
    ("Mask Refinement", "FT-Medium"),
    ("SUM w/o Task Prompt", "FT-Medium"),
    ("SUM Continuous TP", "FT-Medium"),
    SUM,
]
SIZES = [SAM, ("SUM", "FT-Small"), SUM, ("SUM", "FT-Large")]
FIGURES = {
    14: ("Ablation at FT-Medium, point prompts", "point", ABLATION),
    17: ("SAM and SUM at three sizes of the human data, point prompts", "point", SIZES),
    18: ("SAM and SUM at three sizes of the human data, box, then points", "box", SIZES),
}


def _spread_labels(axes, labels: Sequence[tuple[float, str, str]], x: float) -> None:
    """Write (y, text, colour) to the right of the axes at height y, moved apart where they would touch, each
    with a thin leader to its y."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.115
    ordered = sorted(labels)
    heights = [y for y, _, _ in ordered]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    shift = (sum(heights) - sum(y for y, _, _ in ordered)) / max(len(heights), 1)
    heights = [height - shift for height in heights]
    overflow = max(heights[-1] - high, 0) if heights else 0
    for (y, text, colour), height in zip(ordered, heights):
        axes.annotate(
            text,
            (x, y),
            (1.12, height - overflow),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            fontsize=7.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _label(key: tuple[str, str], keys: Sequence[tuple[str, str]]) -> str:
    model, train_set = key
    return model if [name for name, _ in keys].count(model) == 1 else f"{model} {train_set}"


@styled
def rounds_figure(number: int, scores: pd.DataFrame, last_round: int = 6) -> Figure:
    """Figures 14, 17, 18: mIoU and mBIoU over the rounds by task group; ours above (bars: standard deviation
    over seeds), the paper's values below.

    `scores` as from `sumlib.report.results.aggregate`. Models that were not evaluated are left out. Raises
    KeyError for another `number`.
    """
    title, prompt, keys = FIGURES[number]
    ours = (
        over_seeds(scores)
        .query("dataset == 'average' and prompt == @prompt and rounds <= @last_round")
        .rename(columns={"ours": "value"})
    )
    paper = (
        paper_tables()
        .query("dataset == 'average' and prompt == @prompt and rounds <= @last_round")
        .drop_duplicates(["model", "train_set", "rounds", "metric", "task"])
    )
    figure = new_figure(10.2, 8.2)
    grid = figure.subplots(4, 4, sharex=True, height_ratios=[1.3, 1, 1.3, 1])
    for m, metric in enumerate(METRICS):
        for s, (source, values) in enumerate((("micro, ours", ours), ("paper", paper))):
            for t, task in enumerate(GROUPS):
                axes = grid[2 * m + s, t]
                chosen = values[(values["metric"] == metric) & (values["task"] == task)]
                _rounds_panel(axes, chosen, keys, labels=t == 3, faded=source == "paper")
                axes.set_xticks(range(1, last_round + 1))
                if m == s == 0:
                    axes.set_title(GROUP_TITLES[task], fontweight="bold")
            grid[2 * m + s, 0].set_ylabel(f"{metric} ({source})")
    figure.align_ylabels(grid[:, 0])
    first = "round (one more point each)" if prompt == "point" else "round (box, then one more point each)"
    figure.supxlabel(first, fontsize=8)
    heading(figure, f"Figure {number}. {title}")
    return figure


def _rounds_panel(axes, values: pd.DataFrame, keys, *, labels: bool, faded: bool) -> None:
    ends = []
    for key in keys:
        line = values[(values["model"] == key[0]) & (values["train_set"] == key[1])].sort_values("rounds")
        if line.empty:
            continue
        colour, marker = LOOKS[key]
        axes.plot(
            line["rounds"],
            line["value"],
            color=colour,
            marker=marker,
            linestyle=(0, (3, 2)) if faded else "-",
            linewidth=1.0 if faded else 1.5,
            markerfacecolor="white" if faded else colour,
            zorder=3 if key == SUM else 2,
        )
        if "sd" in line and line["sd"].notna().any():
            axes.errorbar(
                line["rounds"],
                line["value"],
                line["sd"],
                fmt="none",
                ecolor=colour,
                elinewidth=0.8,
                alpha=0.6,
                zorder=1,
            )
        ends.append(
            (float(line["value"].iloc[-1]), _label(key, keys), colour, float(line["rounds"].iloc[-1]))
        )
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    axes.set_xlim(0.7, 6.3)
    if not ends:
        axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color="#777777")
    if labels and ends:
        _spread_labels(axes, [end[:3] for end in ends], max(end[3] for end in ends))


@styled
def sampling_figure(gains: pd.DataFrame) -> Figure:
    """Figure 15: what uncertainty-aware sampling gains with one boundary point, per data set and task group,
    beside the paper (Table 5).

    `gains`: one row per metric and place with columns metric, place (data set, task group or "all"), paper,
    value, low, high (points).
    """
    places = [(name, task) for task, names in dataset_order().items() for name in [*names, task]] + [
        ("all", "all")
    ]
    positions = np.cumsum(
        [0] + [1.7 if places[i][1] != places[i + 1][1] else 1 for i in range(len(places) - 1)]
    )
    figure = new_figure(10.2, 5.6)
    for axes, metric in zip(figure.subplots(2, 1, sharex=True), METRICS):
        rows = gains[gains["metric"] == metric].set_index("place")
        for x, (place, _) in zip(positions, places):
            if place not in rows.index:
                continue
            row, average = rows.loc[place], place in GROUPS
            colour = BLUE if average else PALE
            axes.bar(x - 0.2, row["value"], 0.4, color=colour)
            if np.isfinite(row["low"]):
                axes.errorbar(
                    x - 0.2,
                    row["value"],
                    [[row["value"] - row["low"]], [row["high"] - row["value"]]],
                    ecolor=INK,
                    elinewidth=0.8,
                    capsize=1.8,
                    capthick=0.8,
                )
            axes.bar(
                x + 0.2,
                row["paper"],
                0.4,
                facecolor="white",
                edgecolor=GREY,
                linewidth=0.9,
                hatch="////" if average else None,
            )
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_ylabel(f"gain in {metric} (points)")
        axes.set_xlim(positions[0] - 0.8, positions[-1] + 0.8)
        axes.set_xticks(
            positions,
            [f"mean {place}" if place in GROUPS else place for place, _ in places],
            rotation=38,
            ha="right",
            rotation_mode="anchor",
        )
        for text, (place, _) in zip(axes.get_xticklabels(), places):
            text.set_fontweight("bold" if place in GROUPS else "normal")
    handles = [
        Patch(color=BLUE, label="micro, ours (95 % interval)"),
        Patch(facecolor="white", edgecolor=GREY, label="paper"),
    ]
    figure.axes[0].legend(
        handles=handles,
        frameon=False,
        loc="lower right",
        ncols=2,
        fontsize=8,
        bbox_to_anchor=(1, 0.98),
        borderaxespad=0,
    )
    heading(figure, "Figure 15. SUM − SUM w/o uncertainty sampling, one boundary point")
    return figure
