"""Figures over rounds and data sets that the tables' numbers fill: 1, 4, 5, 13, 19-21 and 23-29. In the style of `sumlib.figures.rounds`.

METHOD.md gives the paper's numbers for these but not what each looks like: their subjects follow the tables that they go with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sumlib.figures.rounds import GROUP_TITLES, GROUPS, LOOKS, new_figure, styled
from sumlib.report.results import METRICS, TASKS, dataset_order, over_seeds, paper_tables

Key = tuple[str, str]
"""(model, train_set)."""
LOOKS = LOOKS | {
    ("SUM", "FT-Medium"): ("#0072B2", "D"),  # SAM's marker is the circle
    ("Human-annotation-only", "FT-Medium"): ("#D55E00", "v"),
    ("HQ-SAM", "FT-Small"): ("#D55E00", "v"),
    ("Vanilla (HQ-SAM arch.)", "FT-Small"): ("#E69F00", "s"),
    ("SUM (HQ-SAM arch.)", "FT-Small"): ("#0072B2", "D"),
}
SAM, SUM = ("SAM", "none"), ("SUM", "FT-Medium")
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
TRAINED = {"Human-annotation-only": ("#D55E00", "v"), "Vanilla": ("#E69F00", "s"), "SUM": ("#0072B2", "o")}


@styled
def curves_figure(number: int, scores: pd.DataFrame) -> Figure:
    """A figure of `CURVES`; ``scores`` as from `report.aggregate`. Mean over seeds; models that were not evaluated are left out."""
    spec = CURVES[number]
    values = over_seeds(scores, spec.setting).query("prompt == @spec.prompt", local_dict={"spec": spec})
    if spec.metric is None:
        panels = [(metric, task, "average", f"{GROUP_TITLES[task]}") for metric in METRICS for task in GROUPS]
    else:
        order = dataset_order()
        panels = [(spec.metric, task, name, name) for task in spec.tasks for name in order[task]]
    columns = 4 if spec.metric is None else min(5, len(panels)) if len(panels) > 6 else 3
    rows = -(-len(panels) // columns)
    figure = new_figure(2.3 * columns + 0.4, 2.0 * rows + 0.75)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    drawn: dict[Key, object] = {}
    for axes, (metric, task, dataset, title) in zip(grid.flat, panels):
        chosen = values.query("metric == @metric and task == @task and dataset == @dataset")
        for key in spec.models:
            line = chosen[(chosen["model"] == key[0]) & (chosen["train_set"] == key[1])].sort_values("rounds")
            if len(line):
                colour, marker = LOOKS[key]
                (drawn[key],) = axes.plot(line["rounds"], line["ours"], color=colour, marker=marker)
        axes.set_title(title, fontweight="bold" if dataset == "average" else "normal")
        axes.set_xticks(range(1, int(values["rounds"].max() if len(values) else 1) + 1))
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        axes.margins(y=0.12)
        if not axes.lines:
            axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color="#777777")
    for k in range(len(panels), rows * columns):
        grid.flat[k].axis("off")
        grid.flat[k - columns].tick_params(labelbottom=True)
    for k, row in enumerate(grid):
        row[0].set_ylabel(f"{spec.metric or list(METRICS)[k]}")
    for axes in grid[-1]:
        axes.set_xlabel("round" if spec.prompt == "point" else "round (a box first)")
    figure.legend(
        list(drawn.values()),
        [_name(key) for key in drawn],
        loc="outside lower center",
        ncols=len(drawn) or 1,
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(f"Figure {number}. {spec.title}", x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def _name(key: Key) -> str:
    return key[0] if key[1] == "none" else f"{key[0]}, {key[1]}"


@styled
def budgets_figure(scores: pd.DataFrame, rounds: Sequence[int] = (1, 3)) -> Figure:
    """Figure 5: human masks alone, Vanilla and SUM at each size of the human data, against SAM (line); points, by task group."""
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
            drawn["SAM"] = axes.axhline(
                values[("SAM", "none", metric, task, number)], color="#4D4D4D", linewidth=1
            )
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
    figure.legend(
        list(drawn.values()),
        list(drawn),
        loc="outside lower center",
        ncols=len(drawn),
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(
        "Figure 5. What is trained on, at three sizes of the human data",
        x=0.01,
        ha="left",
        fontsize=10.5,
        fontweight="bold",
    )
    return figure


@styled
def boundary_figure(scores: pd.DataFrame) -> Figure:
    """Figure 13: one boundary point, with (filled) and without (open) uncertainty-aware sampling; ours above, the paper's Table 5 below."""
    keys = {"SUM": "#0072B2", "SUM w/o uncertainty sampling": "white"}
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
        for x, place in enumerate(order):
            pair = [values.get((model, *place), np.nan) for model in keys]
            places = (x + 0.15, x - 0.15)  # beside each other: the differences are small
            axes.plot(places, pair, color="#0072B2", linewidth=1, zorder=1)
            for at, value, face in zip(places, pair, keys.values()):
                axes.plot(
                    at, value, marker="o", color="#0072B2", markerfacecolor=face, markersize=4.5, zorder=2
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
            [], [], color="#0072B2", marker="o", markerfacecolor=face, linestyle="none", label=model
        )
        for model, face in keys.items()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(
        "Figure 13. One point near the boundary", x=0.01, ha="left", fontsize=10.5, fontweight="bold"
    )
    return figure
