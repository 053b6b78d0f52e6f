"""Figures over rounds and data sets show the scores they are given, in looks that can be told apart."""

import numpy as np
import pytest
from test_report import results

from sumlib.figures import curves as drawn
from sumlib.figures import rounds as figures
from sumlib.report import results as report
from sumlib.report.tables import paper_tables


@pytest.fixture(scope="module")
def scores():
    runs = {
        "sam": ("SAM", "none", 0),
        "human-small": ("Human-annotation-only", "FT-Small", 0),
        "vanilla-medium": ("Vanilla", "FT-Medium", 0),
        "sum-medium": ("SUM", "FT-Medium", 0),
        "sum-medium-seed1": ("SUM", "FT-Medium", 1),
        "uniform": ("SUM w/o uncertainty sampling", "FT-Medium", 0),
    }
    return report.aggregate(results(runs, images=2, masks=1))


def lines(axes) -> list[tuple]:
    return [tuple(line.get_ydata()) for line in axes.lines]


@pytest.mark.parametrize("number", drawn.CURVES)
def test_curves_are_the_scores(number, scores):
    spec, figure = drawn.CURVES[number], drawn.curves_figure(number, scores)
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == (
        8 if spec.metric is None else sum(len(report.dataset_order()[task]) for task in spec.tasks)
    )
    values = report.over_seeds(scores, spec.setting)
    values = values[(values["prompt"] == spec.prompt) & (values["metric"] == (spec.metric or "mIoU"))]
    name = "average" if spec.metric is None else panels[0].get_title()
    expected = [
        tuple(
            values[
                (values["model"] == m)
                & (values["train_set"] == t)
                & (values["dataset"] == name)
                & values["task"].isin(spec.tasks[:1])
            ].sort_values("rounds")["ours"]
        )
        for m, t in spec.models
    ]
    assert lines(panels[0]) == [line for line in expected if line]
    assert bool(panels[0].texts) == (not any(expected))  # nothing there is said so
    looks = [drawn.LOOKS[key] for key in spec.models]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(looks)


def test_paper_numbers_are_drawn_once():
    assert not drawn.CURVES.keys() & figures.FIGURES.keys() and {1, 4, *range(19, 22), *range(23, 30)} == set(
        drawn.CURVES
    )


def test_budgets_are_compared_with_sam(scores):
    figure = drawn.budgets_figure(scores)
    sam = (
        report.over_seeds(scores)
        .query(
            "model == 'SAM' and dataset == 'average' and prompt == 'point' "
            "and metric == 'mIoU' and rounds == 1 and task == 'salient'"
        )["ours"]
        .item()
    )
    assert figure.axes[0].lines[0].get_ydata()[0] == sam and len(figure.axes) == 16
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["Small", "Medium", "Large"]


def test_boundary_points_with_and_without_the_sampling(scores):
    figure = drawn.boundary_figure(scores)
    ours = (
        report.over_seeds(scores)
        .query(
            "prompt == 'boundary-point' and rounds == 1 and metric == 'mIoU' "
            "and task == 'salient' and dataset == 'COIFT'"
        )
        .set_index("model")["ours"]
    )
    pair = figure.axes[0].lines[0].get_ydata()
    assert len(figure.axes) == 4 and (
        np.isnan(pair).all()
        if ours.empty
        else list(pair) == [ours["SUM"], ours["SUM w/o uncertainty sampling"]]
    )
    paper = figure.axes[1].lines[0].get_ydata()
    row = (
        paper_tables()
        .query("table == '5' and dataset == 'COIFT' and metric == 'mIoU'")
        .set_index("model")["value"]
    )
    assert list(paper) == [row["SUM"], row["SUM w/o uncertainty sampling"]]
