"""Figures over rounds and data sets: 1, 4, 5, 13, 19-29, and the rounds of one run.

Where the paper's figure could not be seen, ours shows the numbers of the table that it belongs to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sumlib.figures.style import (
    BLUE,
    GREY,
    GROUP_TITLES,
    GROUPS,
    LOOKS,
    SAM,
    SUM,
    Key,
    heading,
    legend_below,
    name_of,
    new_figure,
    styled,
)
from sumlib.report.results import METRICS, TASKS, dataset_order, over_seeds
from sumlib.report.run_scores import rounds_of
from sumlib.report.tables import paper_tables
from sumlib.report.text import shown

MAIN: tuple[Key, ...] = (SAM, ("Human-annotation-only", "FT-Small"), ("Vanilla", "FT-Medium"), SUM)
HQ: tuple[Key, ...] = (
    SAM,
    ("HQ-SAM", "FT-Small"),
    ("Vanilla (HQ-SAM arch.)", "FT-Small"),
    ("SUM (HQ-SAM arch.)", "FT-Small"),
)
BOXED: tuple[Key, ...] = (SAM, ("HQ-SAM", "FT-Small"), SUM)


@dataclass(frozen=True)
class Curves:
    """A figure of scores over rounds."""

    title: str
    models: tuple[Key, ...]
    metric: str | None = None
    """None: both, averaged over task groups; else a panel for each data set of ``tasks``."""
    tasks: tuple[str, ...] = TASKS
    prompt: str = "point"
    setting: str = "oracle"


CURVES = {
    1: Curves("SAM, salient masks alone, Vanilla and SUM", MAIN),
    4: Curves("HQ-SAM's architecture, one fixed output", HQ, setting="single"),
    19: Curves("Salient objects by data set, mIoU", MAIN, "mIoU", ("salient",)),
    20: Curves("Entities by data set, mIoU", MAIN, "mIoU", ("entity",)),
    21: Curves("Parts by data set, mIoU", MAIN, "mIoU", ("part",)),
    23: Curves("Salient objects by data set, mBIoU", MAIN, "mBIoU", ("salient",)),
    24: Curves("Entities by data set, mBIoU", MAIN, "mBIoU", ("entity",)),
    25: Curves("Parts by data set, mBIoU", MAIN, "mBIoU", ("part",)),
    26: Curves("From a box, by data set, mIoU", BOXED, "mIoU", prompt="box"),
    27: Curves("From a box, by data set, mBIoU", BOXED, "mBIoU", prompt="box"),
    28: Curves("One fixed output, by data set, mIoU", BOXED, "mIoU", setting="single"),
    29: Curves("One fixed output, by data set, mBIoU", BOXED, "mBIoU", setting="single"),
}
"""The paper's number -> what is drawn."""
BUDGETS = ("FT-Small", "FT-Medium", "FT-Large")
TRAINED = {
    "Human-annotation-only": LOOKS["Human-annotation-only", "FT-Small"],
    "Vanilla": LOOKS["Vanilla", "FT-Medium"],
    "SUM": LOOKS[SUM],
}
"""Compared at every size: (colour, marker)."""


@styled
def curves_figure(number: int, scores: pd.DataFrame, profile: str = "paper") -> Figure:
    """A figure of `CURVES`, mean over seeds; models that were not evaluated are left out.

    ``scores`` as from `sumlib.report.results.aggregate`; ``profile`` tells how the data sets are called.
    """
    spec = CURVES[number]
    values = over_seeds(scores, spec.setting).query("prompt == @spec.prompt", local_dict={"spec": spec})
    places = _places(spec)
    columns = 4 if spec.metric is None else min(5, len(places)) if len(places) > 6 else 3
    rows = -(-len(places) // columns)
    figure = new_figure(2.3 * columns + 0.4, 2.0 * rows + 0.75)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    last = int(values["rounds"].max()) if len(values) else 1
    drawn: dict[str, object] = {}
    for axes, (metric, task, dataset) in zip(grid.flat, places):
        rows_here = values[["metric", "task", "dataset"]].eq([metric, task, dataset]).all(axis=1)
        drawn |= _curves(axes, values[rows_here], spec.models)
        average = dataset == "average"
        axes.set_title(
            GROUP_TITLES[task] if average else shown(dataset, profile),
            fontweight="bold" if average else "normal",
        )
        axes.set_xticks(range(1, last + 1))
    for k in range(len(places), rows * columns):
        grid.flat[k].axis("off")
        grid.flat[k - columns].tick_params(labelbottom=True)
    for k, row in enumerate(grid):
        row[0].set_ylabel(f"{spec.metric or list(METRICS)[k]}")
    for axes in grid[-1]:
        axes.set_xlabel("round" if spec.prompt == "point" else "round (a box first)")
    legend_below(figure, drawn)
    heading(figure, f"Figure {number}. {spec.title}")
    return figure


def _places(spec: Curves) -> list[tuple[str, str, str]]:
    """(metric, task, data set or "average") of each panel."""
    if spec.metric is None:
        return [(metric, task, "average") for metric in METRICS for task in GROUPS]
    order = dataset_order()
    return [(spec.metric, task, name) for task in spec.tasks for name in order[task]]


def _curves(axes, values: pd.DataFrame, models: Sequence[Key]) -> dict[str, object]:
    """Draw a line for each model that ``values`` has; {its name: the line}."""
    drawn = {}
    for key in models:
        line = values[(values["model"] == key[0]) & (values["train_set"] == key[1])].sort_values("rounds")
        if len(line):
            colour, marker = LOOKS[key]
            (drawn[name_of(key)],) = axes.plot(line["rounds"], line["ours"], color=colour, marker=marker)
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    axes.margins(y=0.12)
    if not drawn:
        axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color="#777777")
    return drawn


@styled
def budgets_figure(scores: pd.DataFrame, rounds: Sequence[int] = (1, 3)) -> Figure:
    """Figure 5: human masks alone, Vanilla and SUM at each size of the human data, against SAM (line);
    points, by task group."""
    values = (
        over_seeds(scores)
        .query("dataset == 'average' and prompt == 'point'")
        .set_index(["model", "train_set", "metric", "task", "rounds"])["ours"]
    )
    cases = [(metric, number) for metric in METRICS for number in rounds]
    figure = new_figure(9.6, 1.75 * len(cases) + 0.8)
    grid, drawn = figure.subplots(len(cases), len(GROUPS), sharex=True), {}
    for axes, task in zip(grid[0], GROUPS):
        axes.set_title(GROUP_TITLES[task], fontweight="bold")
    for row, (metric, number) in zip(grid, cases):
        for axes, task in zip(row, GROUPS):
            drawn["SAM"] = axes.axhline(values[(*SAM, metric, task, number)], color=GREY, linewidth=1)
            for model, (colour, marker) in TRAINED.items():
                known = [
                    k
                    for k, budget in enumerate(BUDGETS)
                    if (model, budget, metric, task, number) in values.index
                ]
                (drawn[model],) = axes.plot(
                    known,
                    [values[(model, BUDGETS[k], metric, task, number)] for k in known],
                    color=colour,
                    marker=marker,
                )
            axes.set(
                xticks=range(len(BUDGETS)),
                xticklabels=[budget.removeprefix("FT-") for budget in BUDGETS],
                xlim=(-0.3, len(BUDGETS) - 0.7),
            )
            axes.margins(y=0.15)
        row[0].set_ylabel(f"{metric}, {number} point{'s' if number > 1 else ''}")
    figure.align_ylabels(grid[:, 0])
    legend_below(figure, drawn)
    heading(figure, "Figure 5. What is trained on, at three sizes of the human data")
    return figure


@styled
def boundary_figure(scores: pd.DataFrame) -> Figure:
    """Figure 13: one boundary point, with (filled) and without (open) uncertainty-aware sampling; ours above,
    the paper's Table 5 below."""
    keys = {"SUM": BLUE, "SUM w/o uncertainty sampling": "white"}
    ours = (
        over_seeds(scores)
        .query("prompt == 'boundary-point' and rounds == 1 and train_set == 'FT-Medium'")
        .rename(columns={"ours": "value"})
    )
    sources: Mapping[str, pd.DataFrame] = {"micro, ours": ours, "paper": paper_tables().query("table == '5'")}
    order = [(task, name) for task, names in dataset_order().items() for name in (*names, "average")]
    figure = new_figure(10.2, 6.4)
    grid = figure.subplots(4, 1, sharex=True)
    for axes, (source, metric) in zip(grid, [(source, metric) for metric in METRICS for source in sources]):
        values = (
            sources[source]
            .query("metric == @metric")
            .drop_duplicates(["model", "task", "dataset"])
            .set_index(["model", "task", "dataset"])["value"]
        )
        marker = LOOKS[SUM][1]
        for x, place in enumerate(order):
            pair = [values.get((model, *place), np.nan) for model in keys]
            places = (x + 0.15, x - 0.15)  # beside each other: the differences are small
            axes.plot(places, pair, color=BLUE, linewidth=1, zorder=1)
            for at, value, face in zip(places, pair, keys.values()):
                axes.plot(
                    at,
                    value,
                    marker=marker,
                    color=BLUE,
                    markerfacecolor=face,
                    markersize=4.5,
                    zorder=2,
                )
        axes.set_ylabel(f"{metric}\n({source})")
        axes.margins(y=0.15)
    grid[-1].set_xticks(
        range(len(order)),
        [f"mean {task}" if name == "average" else name for task, name in order],
        rotation=38,
        ha="right",
        rotation_mode="anchor",
    )
    for text, (_, name) in zip(grid[-1].get_xticklabels(), order):
        text.set_fontweight("bold" if name == "average" else "normal")
    handles = [
        matplotlib.lines.Line2D(
            [], [], color=BLUE, marker=LOOKS[SUM][1], markerfacecolor=face, linestyle="none", label=model
        )
        for model, face in keys.items()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    heading(figure, "Figure 13. One point near the boundary")
    return figure


_TASK_LOOKS = {"salient": (BLUE, "o"), "entity": ("#D55E00", "s"), "part": ("#009E73", "v")}


@styled
def run_figure(scores: pd.DataFrame, prompt: str, setting: str) -> Figure:
    """mIoU and mBIoU of one run by round, a line a task group; ``scores`` as from
    `sumlib.report.results.aggregate`."""
    values = rounds_of(scores, prompt, setting)
    figure = new_figure(7.5, 2.6)
    for axes, metric in zip(figure.subplots(1, 2), METRICS):
        for task, (colour, marker) in _TASK_LOOKS.items():
            line = values.loc[task, metric]
            axes.plot(line.index, line, color=colour, marker=marker, label=task)
        axes.set(xlabel="points", ylabel=f"{metric} (points of 100)", xticks=line.index)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def nine_rounds_figure(means: pd.DataFrame) -> Figure:
    """Figure 22: SAM and SUM on the additional sets, mean over the sets; ``means`` as `additional_means`
    gives them.

    Solid: one fixed output, as in the paper; dashed: best of three in the first round.
    """
    figure = new_figure(7.4, 2.8)
    for axes, (metric, key) in zip(figure.subplots(1, 2), METRICS.items()):
        for model in (SAM, SUM):
            colour, marker = LOOKS[model]
            for setting, style, name in (("single", "-", "one output"), ("oracle", "--", "best of three")):
                line = means.loc[(model[0], setting)].groupby("round")[key].mean()
                axes.plot(
                    line.index,
                    line,
                    style,
                    color=colour,
                    marker=marker,
                    markerfacecolor=colour if setting == "single" else "white",
                    label=f"{model[0]}, {name}",
                )
        axes.set(xlabel="round (one more point each)", ylabel=metric, xticks=line.index)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
