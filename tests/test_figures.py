"""Figures show what they are given, in distinguishable looks, and the same bytes every time."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_report import results

from sumlib.figures import curves, panels, refinement, style
from sumlib.figures import rounds as figures
from sumlib.report import results as report
from sumlib.report.intervals import Bootstrap
from sumlib.report.sampling import sampling_gains


@pytest.fixture(scope="module")
def scores():
    runs = {
        "sam": ("SAM", "none", 0),
        "sum-medium": ("SUM", "FT-Medium", 0),
        "sum-medium-seed1": ("SUM", "FT-Medium", 1),
    }
    return report.aggregate(results(runs, images=2, masks=1))


def picture_row(size=16, **changes) -> dict:
    mask = np.zeros((size, size), bool)
    mask[4:12, 4:12] = True
    return {
        "image": np.full((size, size, 3), 120, np.uint8),
        "sam": ~mask,
        "sum": mask,
        "truth": mask,
        "uncertainty": mask * 0.5,
        "sam_iou": 0.0,
        "sum_iou": 1.0,
        "point": (8, 8),
        "name": "COIFT",
    } | changes


@pytest.mark.parametrize("number", figures.FIGURES)
def test_rounds_figure_draws_the_scores(number, scores):
    figure = figures.rounds_figure(number, scores)
    assert len(figure.axes) == 16
    prompt = figures.FIGURES[number][1]  # noqa: F841, read by the query
    drawn = {tuple(line.get_ydata()) for line in figure.axes[3].lines}
    row = (
        report.over_seeds(scores)
        .query(
            "model == 'SUM' and task == 'all' and dataset == 'average' and metric == 'mIoU' "
            "and prompt == @prompt"
        )
        .sort_values("rounds")
    )
    assert tuple(row["ours"]) in drawn
    assert {text.get_text() for text in figure.axes[3].texts} >= {"SAM"}


def test_models_in_one_figure_differ_in_colour_and_marker():
    for _, _, keys in figures.FIGURES.values():
        looks = [style.LOOKS[key] for key in keys]
        assert len({colour for colour, _ in looks}) == len(keys)
        light = [np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour, _ in looks]
        pairs = [(i, j) for i in range(len(keys)) for j in range(i)]
        assert all(
            looks[i][1] != looks[j][1] or abs(light[i] - light[j]) > 0.05 for i, j in pairs
        )  # told apart in grey print too


def test_a_model_looks_the_same_in_every_figure(scores):
    """SAM is a grey circle and SUM a blue diamond, in the rounds, the curves and against the sizes."""
    for figure in (
        figures.rounds_figure(14, scores),
        figures.rounds_figure(17, scores),
        curves.curves_figure(1, scores),
        curves.curves_figure(26, scores),
    ):
        looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
        assert looks == {style.LOOKS[style.SAM], style.LOOKS[style.SUM]}
    (_, sam), (_, tuned) = style.LOOKS[style.SAM], style.LOOKS[style.SUM]
    assert sam != tuned
    assert {marker for (model, _), (_, marker) in style.LOOKS.items() if model == "SUM"} == {tuned}


def test_sets_of_the_micro_world_are_called_micro(scores):
    titles = [axes.get_title() for axes in curves.curves_figure(20, scores, "micro").axes]
    assert titles == ["micro-EntitySeg-0", "micro-EntitySeg-1", "micro-EntitySeg-2"]


def test_saved_figures_are_the_same_bytes(scores, tmp_path):
    paths = [
        style.save(figures.rounds_figure(17, scores), tmp_path / name, dpi=40) for name in ("a.png", "b.png")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"Software" not in paths[0].read_bytes()


def test_panel_shows_pictures_and_iou():
    figure = panels.sum_panel([picture_row(), picture_row()])
    axes = figure.axes[:10]
    assert [a.get_title() for a in axes[:5]] == ["Image and prompt", "SAM", "Uncertainty", "SUM", "Truth"]
    assert axes[1].get_xlabel() == "IoU 0" and axes[3].get_xlabel() == "IoU 100"
    with pytest.raises(ValueError, match="different size"):
        panels.sum_panel([picture_row(truth=np.zeros((3, 3), bool))])


def test_certainty_plot_states_the_shares():
    bins = [
        {
            "low": i / 10,
            "high": (i + 1) / 10,
            "pixels": 100 if i != 2 else 0,
            "correct": 10 * i if i != 2 else 0,
        }
        for i in range(10)
    ]
    figure = refinement.certainty_vs_correctness(bins, 0.6)
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert (
        f"c > 0.6: {(60 + 70 + 80 + 90) / 4:.1f} % correct" in texts
        and f"c ≤ 0.6: {(0 + 10 + 30 + 40 + 50) / 5:.1f} % correct" in texts
    )
    assert np.isnan(figure.axes[0].lines[0].get_ydata()[2])


def test_levels_plot_states_means():
    masks = {
        "sam_iou": [0.5, 0.7],
        "refined_iou": [0.6, 0.6],
        "sam_biou": [0.2, 0.4],
        "refined_biou": [0.4, 0.4],
    }
    figure = refinement.refined_vs_sam_by_level({"salient": masks, "part": masks})
    assert len(figure.axes) == 4
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "mean 60.0 → 60.0",
        "better 50 %, worse 50 %",
    ]


def test_sampling_figure_without_runs_shows_the_paper():
    frame = results({"sam": ("SAM", "none", 0)}, images=2, masks=1, rounds=(1,))
    figure = figures.sampling_figure(sampling_gains(Bootstrap(frame, np.random.default_rng(0), 10)))
    assert len(figure.axes) == 2
