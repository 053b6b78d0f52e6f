"""Tables 3 and 19, the scores of one run, the report on pseudo-labels: numbers by hand, words, files."""

import json

import numpy as np
import pandas as pd
import pytest
from test_report import tiny

from sumlib.report import additional, label_quality, refinement, run_scores
from sumlib.report.results import aggregate

GROUPS = {"salient": ["COIFT", "BIG"], "entity": ["EntitySeg-0"], "part": ["PACO"]}


def level(gain: float) -> dict:
    before = [0.5, 0.6, 0.7]
    masks = {"image": ["a", "a", "b"]}
    for key in ("iou", "biou"):
        masks |= {f"sam_{key}": before, f"refined_{key}": [value + gain for value in before]}
    return masks


@pytest.fixture(scope="module")
def table():
    gains = {"COIFT": 0.1, "BIG": 0.2, "EntitySeg-0": 0.05, "PACO": -0.1}
    measured = {"point": {name: level(gain) for name, gain in gains.items()}}
    measured["box"] = {name: level(0.0) for name in gains}
    return refinement.refinement_table(refinement.changes(measured, GROUPS, draws=50))


def test_refinement_is_averaged_over_masks_then_over_sets(table):
    rows = table.set_index(["prompt", "metric", "task"])
    assert rows.loc[("point", "mIoU", "salient"), "difference"] == pytest.approx(15)
    assert rows.loc[("point", "mIoU", "all"), "difference"] == pytest.approx((10 + 20 + 5 - 10) / 4)
    assert rows.loc[("point", "mBIoU", "part"), "worse"] == 100
    assert rows["paper_sam"].notna().groupby("prompt").any().to_dict() == {"point": False, "box": True}


def test_refinement_is_told_and_written(table, tmp_path):
    says = refinement.refinement_says(table)
    assert "From a point: salient +15.0 mIoU and +15.0 mBIoU" in says and "on: part (point)." in says
    paths = refinement.write_refinement(table, "small", tmp_path)
    text = paths[1].read_text()
    assert "| point | mIoU | salient | – | – | – | 60.0 | 75.0 | +15.0 (+15.0 to +15.0) | 0 % |" in text
    assert len(pd.read_csv(paths[0])) == len(table) and "nan" not in text


def test_table_19_by_hand():
    frames = []
    for run, model, train_set, gain in (("sam", "SAM", "none", 0.0), ("sum", "SUM", "FT-Medium", 0.1)):
        rows = [("salient", name, f"i{k}", 0.5 + gain) for name in ("DRAM", "iShape") for k in range(3)]
        one = tiny(rows).assign(run=run, model=model, train_set=train_set)
        one["biou"] = one["iou"] / 2
        frames += [one, one.assign(setting="single")]
    results = pd.concat(frames, ignore_index=True)
    table = additional.additional_table(results, ["DRAM", "iShape"], np.random.default_rng(0))
    assert list(table["dataset"]) == ["DRAM", "iShape", "mean"] and set(table["rounds"]) == {1}
    assert table["difference_mIoU"].to_numpy() == pytest.approx([10, 10, 10])
    assert table["difference_mBIoU"].to_numpy() == pytest.approx([5, 5, 5])
    assert "above SAM in mIoU in 2, below in 0" in additional.additional_says(table)
    assert additional.additional_means(results).loc[("SUM", "single", 1, "DRAM"), "iou"] == pytest.approx(60)


def test_scores_of_a_run_by_hand(tmp_path):
    rows = [("salient", "COIFT", "x", 0.2), ("salient", "BIG", "y", 0.6), ("entity", "EntitySeg-0", "z", 0.5)]
    scores = aggregate(tiny([*rows, ("part", "PACO", "p", 1.0)]))
    metrics = run_scores.write_metrics(scores, tmp_path / "a.json")
    assert metrics["point"]["oracle"]["salient"] == {"mIoU": {"1": 40.0}, "mBIoU": {"1": 0.0}}
    assert json.loads((tmp_path / "a.json").read_text()) == metrics
    text = run_scores.run_markdown(scores, "point", "oracle")
    assert text.startswith("A, none, point first, oracle") and "| part | 100.0 | 0.0 |" in text
    assert "- entity: 50.0 mIoU and 0.0 mBIoU at 1 point" in run_scores.run_says(scores, "point", "oracle")


def test_quality_report_counts_what_is_right(tmp_path):
    rng = np.random.default_rng(0)
    masks = pd.DataFrame(
        {"image": np.repeat([f"i{k}" for k in range(10)], 4), "level": ["part", "entity"] * 20}
    )
    for key in ("iou", "biou", "predicted_iou", "stability", "certainty"):
        masks[key] = rng.uniform(0.4, 0.9, len(masks))
    masks["refined_iou"], masks["refined_biou"] = masks["iou"] + 0.1, masks["biou"] + 0.1
    bins = pd.DataFrame({"low": [0.0, 0.5], "high": [0.5, 1.0], "pixels": [10, 10], "correct": [2, 9]})
    bins["certainty"] = [0.25, 0.75]
    report = label_quality.quality_report(masks, bins, label_quality.recalibrate(bins), rng)
    row = report.shares.set_index(["level", "masks of"]).loc[("part", "SAM")]
    part = masks[masks["level"] == "part"]
    assert row["coverage"] == pytest.approx(100 * (part["iou"] >= label_quality.COVERED).mean())
    assert row["coverage_low"] <= row["coverage"] <= row["coverage_high"] and row["pseudo_labels"] == 20
    assert report.changes["value"].to_numpy() == pytest.approx(np.full(4, 10)) and set(
        report.changes["better"]
    ) == {100}
    assert report.errors["all pixels"] == pytest.approx((0.1, 0))
    paths = label_quality.write_quality(report, "medium", tmp_path)
    text = paths[1].read_text()
    assert label_quality.quality_says(report) in text and "FT-Medium" in text and "nan" not in text
