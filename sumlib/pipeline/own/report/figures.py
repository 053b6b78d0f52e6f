"""The charts of a report."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sumlib.figures.style import BLUE, GREEN, GREY, ORANGE, PALE, legend_below, new_figure, styled
from sumlib.pipeline.own.report.results import FOUNDATION, HUMAN, TUNED

LOOKS = {FOUNDATION: (GREY, "o"), HUMAN: (ORANGE, "v"), TUNED: (BLUE, "D")}
"""Colour and marker of each model, as in the other figures."""
ROUND_LOOKS = [(PALE, "o"), (BLUE, "D"), ("#1B2A6B", "s"), (GREEN, "^")]
METRIC_TITLES = {"mIoU": "mIoU: overlap", "mBIoU": "mBIoU: overlap along the outline"}


@styled
def gains_figure(gains: dict[str, pd.DataFrame]) -> Figure:
    """Gain over SAM by clicks, a line a model: rows of `sumlib.pipeline.own.evaluation.compared`, by model.

    SAM is the line at zero. Differences are paired, so that their bands can be told from it; bands of the
    scores themselves would overlap where the models differ mask by mask.
    """
    figure = new_figure(5.4, 2.7)
    lines = {}
    for axes, (metric, title) in zip(figure.subplots(1, 2), METRIC_TITLES.items()):
        lines[FOUNDATION] = axes.axhline(0, color=GREY, linewidth=1.2)
        for model, rows in gains.items():
            own = rows[rows["metric"] == metric].sort_values("round")
            colour, marker = LOOKS[model]
            places = range(len(own))
            (lines[model],) = axes.plot(places, own["value"], color=colour, marker=marker)
            axes.fill_between(places, own["low"], own["high"], color=colour, alpha=0.15, linewidth=0)
        axes.set_xticks(range(own["round"].nunique()), own["round"].astype(str))
        axes.set_xlabel("points (clicks)")
        axes.set_title(title, loc="left")
    figure.axes[0].set_ylabel(f"gain over {FOUNDATION} (points of 100)")
    legend_below(figure, lines)
    return figure


@styled
def probe_figure(agreed: dict[str, pd.DataFrame]) -> Figure:
    """Agreement with SAM by size and by level: rows of `probe.summary` of one prompt and round, by model."""
    first = next(iter(agreed.values()))
    figure = new_figure(5.4, 2.5)
    axes = figure.subplots()
    places = range(len(first))
    step = 0.22
    own = [p - step * len(agreed) / 2 for p in places]
    marks = {FOUNDATION: axes.plot(own, first["sam"], LOOKS[FOUNDATION][1], color=LOOKS[FOUNDATION][0])[0]}
    for number, (model, rows) in enumerate(agreed.items(), 1):
        at = [p + step * (number - len(agreed) / 2) for p in places]
        reach = [rows["iou"] - rows["low"], rows["high"] - rows["iou"]]
        colour, marker = LOOKS[model]
        marks[model] = axes.errorbar(
            at, rows["iou"], reach, fmt=marker, color=colour, capsize=2, elinewidth=1
        )
    titles = [f"{row.group}\n{row.masks} masks" for row in first.itertuples()]
    axes.set_xticks(places, titles)
    axes.set_xlim(-0.6, len(first) - 0.4)
    for cut in [k - 0.5 for k in places if k and first["by"].iloc[k] != first["by"].iloc[k - 1]]:
        axes.axvline(cut, color="#CCCCCC", linewidth=0.7)
    axes.set_ylabel("agreement with SAM (IoU)")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    legend_below(figure, marks)
    return figure


@styled
def keep_figure(curve: pd.DataFrame) -> Figure:
    """`sumlib.pipeline.own.keep.Choice.curve`: what is learnt above, what is forgotten below."""
    figure = new_figure(5.4, 3.6)
    above, below = figure.subplots(2, 1, sharex=True)
    lines = {}
    rounds = [column for column in curve if column.startswith("mIoU, ")]
    for column, (colour, marker) in zip(rounds, ROUND_LOOKS):
        name = column.removeprefix("mIoU, ")
        name = "1 point" if name == "1" else f"{name} points"
        (lines[name],) = above.plot(curve["keep"], curve[column], color=colour, marker=marker)
    above.set_title("learnt: mIoU on held-out masks", loc="left")
    below.plot(curve["keep"], curve["agreement"], color=GREY, marker="o")
    below.fill_between(
        curve["keep"], curve["agreement_low"], curve["agreement_high"], color=GREY, alpha=0.15, linewidth=0
    )
    below.set_title("kept: agreement with SAM on its confident masks", loc="left")
    below.set_xlabel("share of the tuning that is kept (0: SAM, 1: all)")
    below.set_xticks(curve["keep"], [f"{keep:g}" for keep in curve["keep"]])
    chosen = curve.loc[curve["chosen"], "keep"]
    refused = curve.loc[~curve["allowed"], "keep"]
    for axes in (above, below):
        for keep in chosen:
            lines["chosen"] = axes.axvline(keep, color=GREEN, linestyle="--", linewidth=1.2)
        if len(refused):
            axes.axvspan(refused.min() - 0.04, 1.04, color="#F3E7E0", zorder=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    above.set_xlim(-0.04, 1.04)
    legend_below(figure, lines)
    return figure


@styled
def learning_figure(curve: pd.DataFrame) -> Figure:
    """Of `sumlib.pipeline.own.keep.learning_curve`: held-out mIoU by the number of masks trained with."""
    figure = new_figure(5.4, 2.6)
    axes = figure.subplots()
    lines = {}
    own = curve[curve["metric"] == "mIoU"]
    counts = sorted(own["masks"].unique())
    for number, (colour, marker) in zip(sorted(own["round"].unique()), ROUND_LOOKS):
        rows = own[own["round"] == number].sort_values("masks")
        name = "1 point" if number == 1 else f"{number} points"
        (lines[name],) = axes.plot(range(len(rows)), rows["value"], color=colour, marker=marker)
        if number == own["round"].min():  # bands of all rounds would hide each other
            axes.fill_between(
                range(len(rows)), rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0
            )
    axes.set_xticks(range(len(counts)), [str(count) if count else "0 (SAM)" for count in counts])
    axes.set_xlabel("masks trained with")
    axes.set_ylabel("mIoU on held-out masks")
    legend_below(figure, lines)
    return figure
