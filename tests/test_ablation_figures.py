"""Figures of schemes, theta and refinement modules show the numbers they are given."""

import pandas as pd
import pytest
from test_report import results

from sumlib.figures import ablation as drawn
from sumlib.report import results as report


@pytest.fixture(scope="module")
def scores():
    runs = {
        "sam": ("SAM", "none", 0),
        "human-small": ("Human-annotation-only", "FT-Small", 0),
        "lora-small": ("LoRA FT", "FT-Small", 0),
        "sum-medium": ("SUM", "FT-Medium", 0),
        "theta": ("SUM theta = 0.2", "FT-Medium", 0),
    }
    return report.aggregate(results(runs, images=2, masks=1))


def test_schemes_are_shown_as_differences_to_sam(scores):
    figure = drawn.schemes_figure(scores)
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "human masks: everything",
        "human masks: these and encoder LoRA",
    ]  # what was not evaluated is left out
    values = (
        report.over_seeds(scores)
        .query(
            "dataset == 'average' and prompt == 'point' and rounds == 1 "
            "and task == 'salient' and metric == 'mIoU'"
        )
        .set_index("model")["ours"]
    )
    shown = [line.get_xdata()[0] for line in first.lines if line.get_label() == "mIoU"]
    assert shown == [pytest.approx(values["Human-annotation-only"] - values["SAM"])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mIoU", "mBIoU"]


def test_theta_has_a_point_for_each_model_that_was_evaluated(scores):
    figure = drawn.theta_figure(scores)
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.2, 0.6] and len(figure.axes) == 2 * 4


def test_variants_are_bars_with_intervals_and_the_method_last():
    rows = [
        {
            "name": name,
            "metric": metric,
            "task": task,
            "difference": value,
            "low": value - 1,
            "high": value + 2,
        }
        for name, value in (("other", -3.0), ("module", 2.0))
        for metric in ("mIoU", "mBIoU")
        for task in ("salient", "entity", "part", "all")
    ]
    figure = drawn.variants_figure(pd.DataFrame(rows), ["other", "module"], "Figure 8. Some")
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [-3.0, 2.0] and bars[0].get_facecolor() != bars[
        1
    ].get_facecolor()
    assert len(figure.axes) == 8 and figure.axes[4].get_xlabel() == "mBIoU: difference to SAM"
