"""Figures of schemes and settings.

What a lightweight scheme forgets (Figure 12), what theta does (Figure 16), other refinement modules (Figures
7 and 8).
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from sumlib.figures.style import (
    BLUE,
    GREEN,
    GROUP_TITLES,
    GROUPS,
    INK,
    ORANGE,
    SAM,
    heading,
    new_figure,
    styled,
)
from sumlib.report.results import METRICS, over_seeds

SCHEMES = {  # (model, train_set): shown as; the colour tells what it was trained on
    ("Human-annotation-only", "FT-Small"): "human masks: everything",
    ("Decoder+Prompt-Encoder FT", "FT-Small"): "human masks: decoder and prompt encoder",
    ("Adapter FT", "FT-Small"): "human masks: these and encoder adapters",
    ("LoRA FT", "FT-Small"): "human masks: these and encoder LoRA",
    ("SUM", "FT-Small"): "SUM: everything",
    ("SUM (Encoder Adapter arch.)", "FT-Small"): "SUM: decoder, prompt encoder, adapters",
}
THETAS = {0.2: "SUM theta = 0.2", 0.5: "SUM theta = 0.5", 0.6: "SUM", 0.8: "SUM theta = 0.8"}
"""Threshold of the dice loss -> model at FT-Medium."""
_ROUND_LOOKS = {1: (BLUE, "o", "-"), 3: (ORANGE, "s", "--"), 6: (GREEN, "^", ":")}


@styled
def schemes_figure(scores: pd.DataFrame, rounds: int = 1) -> Figure:
    """Figure 12: difference to SAM after ``rounds`` points for each of `SCHEMES`, a column a task group.

    mIoU filled, mBIoU open.
    """
    values = (
        over_seeds(scores)
        .query("dataset == 'average' and prompt == 'point' and rounds == @rounds")
        .set_index(["model", "train_set", "task", "metric"])["ours"]
    )
    known = values.index.droplevel(["task", "metric"])
    schemes = {key: name for key, name in SCHEMES.items() if key in known}
    figure = new_figure(8.6, 1.2 + 0.3 * len(schemes))
    for axes, task in zip(figure.subplots(1, 3, sharey=True), GROUPS):
        axes.axvline(0, color=INK, linewidth=0.8)
        for y, key in enumerate(schemes):
            colour, marker = (BLUE, "D") if key[0].startswith("SUM") else (ORANGE, "v")
            for metric, face in (("mIoU", colour), ("mBIoU", "white")):
                axes.plot(
                    values[(*key, task, metric)] - values[(*SAM, task, metric)],
                    y,
                    marker=marker,
                    color=colour,
                    markerfacecolor=face,
                    markersize=5.5,
                    linestyle="none",
                    label=metric if y == 0 else None,
                )
        axes.set(
            yticks=range(len(schemes)),
            yticklabels=schemes.values(),
            ylim=(len(schemes) - 0.5, -0.5),
            xlabel="difference to SAM (points)",
        )
        axes.set_title(GROUP_TITLES[task], fontweight="bold")
        axes.grid(axis="x")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside upper right",
        ncols=2,
        frameon=False,
        fontsize=7.5,
    )
    heading(figure, "Figure 12. What is forgotten, whatever moves")
    return figure


@styled
def theta_figure(scores: pd.DataFrame) -> Figure:
    """Figure 16: SUM (FT-Medium, seed 0) by the threshold theta of the dice loss, after 1, 3 and 6 points."""
    chosen = scores.query(
        "dataset == 'average' and prompt == 'point' and setting == 'oracle' and train_set == 'FT-Medium' "
        "and seed == 0"
    )
    values = chosen.set_index(["model", "task", "metric", "rounds"])["value"]
    thetas = {theta: model for theta, model in THETAS.items() if model in set(chosen["model"])}
    figure = new_figure(8.6, 4.2)
    grid = figure.subplots(2, len(GROUPS), sharex=True)
    for row, metric in zip(grid, METRICS):
        for axes, task in zip(row, GROUPS):
            for rounds, (colour, marker, line) in _ROUND_LOOKS.items():
                known = {
                    theta: values[(model, task, metric, rounds)]
                    for theta, model in thetas.items()
                    if (model, task, metric, rounds) in values.index
                }
                axes.plot(
                    list(known),
                    list(known.values()),
                    color=colour,
                    marker=marker,
                    linestyle=line,
                    label=f"{rounds} point{'s' if rounds > 1 else ''}",
                )
            axes.margins(y=0.15)
            if metric == "mIoU":
                axes.set_title(GROUP_TITLES[task], fontweight="bold")
        row[0].set_ylabel(metric)
    for axes in grid[1]:
        axes.set(xticks=list(thetas), xlabel="θ")
    grid[0, 0].legend(frameon=False, fontsize=7)
    heading(figure, "Figure 16. The threshold θ of the uncertainty-aware dice loss")
    return figure


@styled
def variants_figure(changed: pd.DataFrame, titles: Sequence[str], text: str) -> Figure:
    """Figures 7 and 8: what each refinement module changes in SAM's masks, with 95 % intervals.

    ``changed`` as from `sumlib.report.refinement.changes`; ``titles`` are its names, the method's last.
    """
    rows = changed.set_index(["metric", "task", "name"])
    figure = new_figure(9.2, 1.0 + 0.5 * len(titles))
    grid = figure.subplots(len(METRICS), len(GROUPS), sharey=True)
    for line, metric in zip(grid, METRICS):
        for axes, task in zip(line, GROUPS):
            axes.axvline(0, color=INK, linewidth=0.8)
            for y, title in enumerate(titles):
                row = rows.loc[(metric, task, title)]
                colour = BLUE if title == titles[-1] else "#8A8A8A"
                axes.barh(y, row["difference"], color=colour, height=0.62)
                below, above = row["difference"] - row["low"], row["high"] - row["difference"]
                axes.errorbar(
                    row["difference"],
                    y,
                    # with few images the value may lie outside its interval
                    xerr=[[max(below, 0)], [max(above, 0)]],
                    color=INK,
                    linewidth=0.9,
                    capsize=2,
                )
            axes.set(yticks=range(len(titles)), yticklabels=titles, ylim=(len(titles) - 0.4, -0.6))
            axes.grid(axis="x")
            axes.grid(False, axis="y")
            if metric == "mIoU":
                axes.set_title(GROUP_TITLES[task], fontweight="bold")
            axes.set_xlabel(f"{metric}: difference to SAM")
    heading(figure, text)
    return figure
