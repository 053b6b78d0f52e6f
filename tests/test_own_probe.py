"""The forgetting probe: SAM agrees with itself, a model pushed away does not, and groups are told apart."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from own_models import SURE, dataset_of, foundation, held_out, pushed, unlabeled

from sumlib.base.paths import SAMPLE
from sumlib.data.dataset import Dataset, Entry
from sumlib.data.images import BadSampleError
from sumlib.model.checkpoint import load_sam
from sumlib.model.sum import Sum
from sumlib.pipeline.own.evaluation import compared, evaluate_own, scores, task_of
from sumlib.pipeline.own.probe import Extent, ask, forgetting_probe, levels, make_probe, summary
from sumlib.pseudo.store import PseudoLabels, generate

QUICK = {"extent": Extent(masks=6), "progress": False}
ROUNDS = {"extent": Extent(masks=6, rounds=(1, 3)), "progress": False}


@pytest.fixture(scope="module")
def sam():
    return foundation()


@pytest.fixture(scope="module")
def table(sam):
    return forgetting_probe(pushed(sam, 0.3), sam, unlabeled(), SURE, **ROUNDS)


def test_an_untuned_model_agrees_with_sam(sam):
    found = forgetting_probe(Sum(sam.sam), sam, unlabeled(3), SURE, **QUICK)
    whole = summary(found).query("by == 'all'").set_index("prompt")
    assert whole.loc["point", "iou"] > 99.9 and whole.loc["point", "biou"] > 99.9
    assert whole["change"].abs().max() == 0 and whole.loc["point", "lost"] == 0


def test_a_model_pushed_away_agrees_less_the_further_the_less(sam, table):
    near = forgetting_probe(
        pushed(sam, 0.01), sam, unlabeled(), SURE, extent=Extent(masks=6, prompts=("point",)), progress=False
    )
    rows = [
        summary(one).query("by == 'all' and prompt == 'point' and round == 1").iloc[0]
        for one in (near, table)
    ]
    assert 100 > rows[0]["iou"] > rows[1]["iou"] + 5
    assert rows[1]["change_high"] < 0 and rows[1]["low"] < rows[1]["iou"] < rows[1]["high"]


def test_rows_are_the_same_for_both_models_and_on_every_run(sam, table):
    keys = ["image", "mask", "prompt", "round", "area", "size", "level"]
    own, other = (table.loc[table["model"] == name, keys].reset_index(drop=True) for name in ("SUM", "SAM"))
    pd.testing.assert_frame_equal(own, other)
    assert set(table["round"]) == {1, 3} and table.groupby("image")["mask"].nunique().max() <= 6
    again = forgetting_probe(pushed(sam, 0.3), sam, unlabeled(), SURE, **ROUNDS)
    pd.testing.assert_frame_equal(table, again)


def test_groups_add_up_and_follow_their_definitions(table):
    rows = summary(table).query("prompt == 'point' and round == 1")
    counts = rows.groupby("by")["masks"].sum()
    assert counts["size"] == counts["level"] == counts["all"]
    assert (table.query("size == 'small'")["area"] < 0.0034).all()
    assert (table.query("size == 'large'")["area"] >= 0.03).all()
    weighted = rows[rows["by"] == "size"]
    mean = (weighted["iou"] * weighted["masks"]).sum() / counts["all"]
    assert mean == pytest.approx(rows.loc[rows["by"] == "all", "iou"].item())


def test_a_mask_inside_another_is_a_part_and_a_near_copy_is_not():
    whole = np.zeros((30, 30), bool)
    whole[5:25, 5:25] = True
    inside, beside, copy = (np.zeros_like(whole) for _ in range(3))
    inside[6:12, 6:12], beside[0:4, 0:4], copy[5:25, 5:24] = True, True, True
    assert levels(np.stack([whole, inside, beside, copy])) == ["whole", "part", "whole", "whole"]
    large = np.kron(np.stack([whole, inside]), np.ones((1, 40, 40))).astype(bool)
    assert levels(large) == ["whole", "part"]


def test_images_outside_training_come_first_and_bad_ones_make_room(sam):
    images = unlabeled(5)

    def broken():
        raise BadSampleError("photo.png", "cannot be read")

    entries = [*images._entries[:4], Entry("broken", "photo.png", broken), *images._entries[4:]]
    mixed = Dataset("unlabeled", 0, entries)
    probe = make_probe(
        sam, mixed, SURE, trained=set(images.names[:3]), extent=Extent(images=4, masks=6), progress=False
    )
    fresh = [item.name for item in probe.items if not item.trained]
    assert fresh == images.names[3:] and len(probe.items) == 4 and probe.skipped == ("broken",)
    rows = ask(sam, probe, progress=False)
    assert rows.loc[rows["trained"], "image"].nunique() == 2


def test_stored_masks_are_sams_own_and_are_held_to_the_thresholds(sam, tmp_path):
    images = unlabeled(3)
    generate(sam, images, SURE, tmp_path / "masks.parquet", progress=False)
    labels = PseudoLabels(tmp_path / "masks.parquet", refined=False)
    made = make_probe(sam, images, SURE, **QUICK)
    stored = make_probe(sam, images, SURE, labels=labels, **QUICK)
    assert [item.rles for item in stored.items] == [item.rles for item in made.items]
    strict = replace(SURE, stability_thresh=float(np.median(labels.table(["stability"])["stability"])))
    kept = make_probe(sam, images, strict, labels=labels, extent=Extent(masks=1000), progress=False)
    assert 0 < kept.masks < make_probe(sam, images, SURE, extent=Extent(masks=1000), progress=False).masks
    assert min(item.about["stability"].min() for item in kept.items) >= strict.stability_thresh


def test_a_probe_that_asks_nothing_says_so(sam):
    with pytest.raises(ValueError, match="SAM is sure of no mask in 3 images: lower"):
        make_probe(sam, unlabeled(3), replace(SURE, stability_thresh=1.0, pred_iou_thresh=1.0), **QUICK)
    with pytest.raises(ValueError, match="no prompt 'pen'"):
        Extent(prompts=("pen",))
    with pytest.raises(ValueError, match="no answers of HQ"):
        summary(forgetting_probe(sam, sam, unlabeled(1), SURE, **QUICK), "HQ")


# ---- held-out masks -----------------------------------------------------------------------------


def test_held_out_rows_are_those_of_the_evaluation(sam):
    """Against `sumlib.evaluate.evaluate_run`, which has the protocol and other batches."""
    from sumlib.config.params import load_config
    from sumlib.evaluate import evaluate_run

    config = load_config("smoke")
    fixed = replace(config.evaluate, rounds=3, prompts=("point",), settings=("oracle",), limit_images=None)
    data = held_out(3)
    theirs = evaluate_run(sam, [data], run=config.run("sam"), config=replace(fixed, workers=1))
    ours = evaluate_own({"SAM": sam}, data, rounds=(1, 3), progress=False)
    keys = ["image", "mask", "round"]
    both = ours.merge(theirs[[*keys, "iou", "biou"]], on=keys, suffixes=("", "_run"))
    assert len(both) == len(ours) == 2 * sum(len(sample.masks) for sample in data)
    assert np.allclose(both["iou"], both["iou_run"], atol=1e-3)
    assert np.allclose(both["biou"], both["biou_run"], atol=1e-3)


def test_a_model_is_told_only_tasks_that_it_has_learnt(sam):
    tuned = pushed(sam, 0)
    assert (task_of(tuned, 2), task_of(tuned, 1), task_of(tuned, 9), task_of(sam, 2)) == (2, 0, 0, 0)
    told = evaluate_own({"SAM": sam, "SUM": tuned}, held_out(2), rounds=(1,), progress=False)
    assert not np.allclose(*(told.loc[told["model"] == name, "iou"] for name in ("SAM", "SUM")))


def test_differences_are_paired_and_have_no_interval_for_few_images(sam):
    tuned = pushed(sam, 0.3)
    own = evaluate_own({"SAM": sam, "SUM": tuned}, held_out(6), rounds=(1, 3), progress=False)
    change = compared(own, "SUM", "SAM").set_index(["metric", "round"])
    value = scores(own).set_index(["model", "metric", "round"])["value"]
    for metric, number in change.index:
        row = change.loc[(metric, number)]
        assert row["value"] == pytest.approx(
            value["SUM", metric, number] - value["SAM", metric, number], abs=1e-4
        )
        assert row["low"] < row["value"] < row["high"]
    few = compared(own[own["image"].isin(["image0", "image1"])], "SUM", "SAM")
    assert few["low"].isna().all() and few["images"].eq(2).all()
    twins = own.assign(photo=own["photo"].where(own["image"] == "image0", "one picture"))
    assert compared(twins, "SUM", "SAM")["images"].eq(2).all()
    with pytest.raises(ValueError, match="other masks"):
        compared(pd.concat([own[own["model"] == "SAM"], own[own["model"] == "SUM"][3:]]), "SUM", "SAM")


def test_the_real_micro_sam_is_sure_of_masks_that_its_pushed_copy_redraws():
    """With real weights and the real thresholds of the micro profile."""
    from sumlib.config.params import load_config

    sam = Sum(load_sam("micro", SAMPLE / "foundation" / "sam.safetensors")).eval()
    config = load_config("micro").pseudo_label
    images = dataset_of([replace(s, masks=s.masks[:0]) for s in held_out(4)])
    found = forgetting_probe(pushed(sam, 0.1), sam, images, config, **QUICK)
    row = summary(found).query("by == 'all' and prompt == 'point'").iloc[0]
    assert row["sam"] > 99.9 and row["iou"] < 99 and (found["predicted_iou"] > 0.7).all()
