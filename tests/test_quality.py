"""Quality of pseudo-labels: matches, intervals, separation, calibration and correction curves, by hand and by
properties."""

import numpy as np
import pandas as pd
import pytest

from sumlib.analysis import label_quality as quality
from sumlib.base.paths import SAMPLE
from sumlib.config.params import load_config
from sumlib.figures import label_quality as quality_figures
from sumlib.figures import style as figures
from sumlib.micro.truth import open_truth
from sumlib.pipeline.smoke import pseudo_labels
from sumlib.pseudo.store import Label, PseudoLabels
from sumlib.report import label_quality as report
from sumlib.report.intervals import share_interval


def block(y0: int, y1: int, x0: int = 0, x1: int = 10) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def label(masks: list, refined: list, certainty: float = 1.0) -> Label:
    count = len(masks)
    return Label(
        np.stack(masks),
        np.stack(refined),
        np.full((count, 10, 10), certainty, np.float32),
        np.zeros((count, 2), np.float32),
        np.zeros((count, 4), np.float32),
        np.linspace(0.5, 0.9, count),
        np.full(count, 0.8),
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Pseudo-labels of the first sample images, compared with their truth."""
    labels = PseudoLabels(pseudo_labels(load_config("smoke"), tmp_path_factory.mktemp("quality")))
    truth = open_truth(SAMPLE)
    return labels, truth, quality.compare_all(labels, truth, progress=False)[0]


# ---- comparing
# ---------------------------------------------------------------------------------------------------------


def test_compare_by_hand():
    truth = {
        "salient": block(0, 8)[None],
        "entity": np.stack([block(0, 4), block(4, 8)]),
        "part": block(0, 2)[None],
    }
    found = quality.compare(
        label(
            [block(0, 2), block(0, 8), block(4, 6), block(9, 10)],
            [block(0, 1), block(0, 8), block(4, 8), block(9, 10)],
        ),
        truth,
    )
    assert found["level"].tolist() == ["part", "salient", "entity", "none"]
    assert found["iou"].tolist() == pytest.approx([1, 1, 0.5, 0])
    assert found["refined_iou"].tolist() == pytest.approx([0.5, 1, 1, 0])  # with the same true mask
    assert (
        found["biou"].tolist()[:2] == [1, 1] and found["biou"].iloc[3] == found["refined_biou"].iloc[3] == 0
    )
    assert found["certainty"].tolist() == [1] * 4 and found["predicted_iou"].tolist() == pytest.approx(
        [0.5, 0.9 - 0.8 / 3, 0.9 - 0.4 / 3, 0.9]
    )


def test_a_mask_that_is_entity_and_salient_counts_as_the_finer_level():
    truth = {"salient": block(0, 4)[None], "entity": block(0, 4)[None]}
    assert quality.compare(label([block(0, 3)], [block(0, 4)]), truth)["level"].tolist() == ["entity"]


def test_mean_certainty_is_of_the_masks_own_pixels():
    one = label([block(0, 5)], [block(0, 5)])
    one.certainty[0, :5], one.certainty[0, 5:] = 0.25, 0.75
    assert quality.compare(one, {"entity": block(0, 5)[None]})["certainty"].tolist() == [0.25]


def test_an_image_without_truth_is_named_or_refused(measured):
    labels, truth, _ = measured
    first = labels.images[0]
    some = {
        level: dataset[[name != first for name in dataset.names].index(True) :]
        for level, dataset in truth.items()
    }
    masks, without = quality.compare_all(labels, some, progress=False)
    assert without == ([first] if all(first not in dataset.names for dataset in some.values()) else [])
    assert set(masks["image"]) | set(without) == set(labels.images)
    with pytest.raises(ValueError, match="no true masks"):
        quality.compare(labels[first], {})
    with pytest.raises(ValueError, match="has true masks"):
        quality.compare_all(labels, {level: dataset[:0] for level, dataset in truth.items()}, progress=False)


def test_compare_all_has_a_row_for_every_mask(measured):
    labels, _, masks = measured
    assert masks.groupby("image", sort=False).size().to_dict() == {
        name: len(labels[name].masks) for name in labels.images
    }
    assert (
        masks[["iou", "biou", "refined_iou", "refined_biou", "certainty"]].stack().between(0, 1).all()
        and masks["iou"].max() > 0.5
    )


def test_judged_by_its_thresholds():
    masks = pd.DataFrame(
        {
            "iou": [0.75, 0.9, 0.7],
            "biou": [0.6, 0.5, 0.9],
            "refined_iou": [0.0, 1, 1],
            "refined_biou": [1.0, 1, 0],
        }
    )
    found = report.answers(masks)
    assert found["both"].tolist() == [True, False, False] and found["coverage"].tolist() == [
        True,
        True,
        False,
    ]
    assert found["refined_both"].tolist() == [False, True, False]


# ---- statistics
# --------------------------------------------------------------------------------------------------------


def test_share_interval_is_over_images():
    rng = np.random.default_rng(0)
    assert share_interval(np.ones(6), list("aabbcc"), rng) == (1, 1, 1)
    values, images = np.repeat([0.0, 1.0], 50), np.repeat(np.arange(20), 5)
    value, low, high = share_interval(values, images, rng)
    each = share_interval(values, np.arange(100), rng)
    assert value == each[0] == 0.5 and low < 0.4 and high > 0.6
    assert high - low > 1.8 * (each[2] - each[1])  # 20 images of 5 equal masks know less than 100 images


def test_separation_is_the_probability_of_a_larger_score():
    rng = np.random.default_rng(1)
    good = rng.random(60) < 0.4
    scores = np.round(rng.normal(good, 1.0), 1)  # with ties
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    found = report.separation(scores, good)
    assert (
        found.auc == pytest.approx(np.mean(pairs))
        and found.good == np.median(scores[good])
        and found.p < 0.05
    )
    assert np.isnan(report.separation(scores, np.ones(60, bool)).auc) and np.isnan(
        report.separation(scores, np.zeros(60, bool)).good
    )


def test_calibration_by_hand():
    bins = pd.DataFrame(
        {
            "low": [0, 0.25, 0.5, 0.75],
            "high": [0.25, 0.5, 0.75, 1],
            "pixels": [10, 0, 20, 70],
            "correct": [4, 0, 4, 70],
            "certainty": [0.2, 0.375, 0.6, 1.0],
        }
    )
    assert report.calibration_error(bins) == pytest.approx((10 * 0.2 + 20 * 0.4 + 0) / 100)
    assert report.calibration_error(bins, below=0.75) == pytest.approx(10 / 30)
    fitted = report.recalibrate(bins)
    pooled = 8 / 30  # 0.4 and then 0.2 is not monotone
    assert fitted.tolist() == pytest.approx([pooled, pooled, pooled, 1])
    assert report.calibration_error(bins, fitted) < report.calibration_error(bins)
    with pytest.raises(ValueError, match="no bin"):
        report.recalibrate(bins.assign(pixels=0))


def test_certainty_bins_count_the_pixels_of_good_masks(measured):
    labels, truth, masks = measured
    bins = quality.certainty_bins(labels, truth, progress=False)
    size = {name: labels[name].masks[0].size for name in labels.images}
    assert bins["pixels"].sum() == sum(size[row.image] for row in masks.itertuples() if row.iou >= 0.5)
    assert (bins["correct"] <= bins["pixels"]).all() and (
        (bins["low"] <= bins["certainty"]) & (bins["certainty"] <= bins["high"] + 1e-6)
    ).all()


# ---- correcting by hand
# ------------------------------------------------------------------------------------------------


def test_correction_curve_ends_perfect_and_the_truth_is_the_best_order():
    rng = np.random.default_rng(2)
    value = rng.random(40)
    best = report.correction_curve(value, value.argsort())
    assert best[0] == pytest.approx(value.mean()) and best[-1] == pytest.approx(1)
    for _ in range(20):
        assert (report.correction_curve(value, rng.permutation(40)) <= best + 1e-12).all()


def test_advantage_is_one_for_the_truth_zero_for_chance_and_negative_when_wrong():
    rng = np.random.default_rng(3)
    value = rng.random(400)
    assert report.advantage(value, value) == pytest.approx(1)
    assert report.advantage(value, np.zeros(400)) == pytest.approx(0)
    assert report.advantage(value, -value) == pytest.approx(-1)
    assert abs(np.mean([report.advantage(value, rng.random(400)) for _ in range(50)])) < 0.05
    assert 0.2 < report.advantage(value, value + rng.normal(0, 0.3, 400)) < 0.95
    assert np.isnan(report.advantage(np.ones(3), np.arange(3)))


# ---- figures
# -----------------------------------------------------------------------------------------------------------


def test_survival_curve_passes_the_counted_share(measured):
    masks = measured[2]
    figure = quality_figures.survival_figure(masks)
    marked = {
        (line.get_xdata()[0], round(line.get_ydata()[0], 6))
        for axes in figure.axes
        for line in axes.lines
        if len(line.get_xdata()) == 1
    }
    for key, limit in (("iou", report.COVERED), ("biou", report.SHARP)):
        for prefix in ("", "refined_"):
            assert (limit, round(100 * (masks[prefix + key] >= limit).mean(), 6)) in marked


def test_level_bars_add_up(measured):
    masks = measured[2]
    figure = quality_figures.levels_figure(masks, report.answers(masks))
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert sum(widths) == pytest.approx(200)  # SAM's and the refined masks


def test_figures_are_drawn_where_one_kind_is_missing(measured, tmp_path):
    masks = measured[2]
    for good in (np.zeros(len(masks), bool), np.ones(len(masks), bool)):
        tests = {name: report.separation(masks[name], good) for name in report.SCORES}
        figures.save(quality_figures.scores_figure(masks, good, tests), tmp_path / "scores.png", dpi=30)
    assert (tmp_path / "scores.png").stat().st_size > 1000
