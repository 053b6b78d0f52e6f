"""Automatic masks against the official generator; the Parquet file, resumed runs, refined maps, reading."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import rle_to_mask

from sumlib.base.paths import SAMPLE
from sumlib.config.params import PseudoLabelConfig
from sumlib.data.dataset import Dataset, Entry
from sumlib.micro.world import Style, make_scene
from sumlib.model.checkpoint import load_sam
from sumlib.model.micro_sam import build_sam_micro
from sumlib.model.sum import Sum
from sumlib.pseudo import store
from sumlib.pseudo.automatic import AutomaticMasks
from sumlib.pseudo.store import PseudoLabels, add_uncertainty, decode_map, encode_map, generate, map_logits


@pytest.fixture(scope="module")
def model():
    """An untrained micro SAM whose logits are spread enough for masks of many sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Sum(build_sam_micro(width=32, depth=2, channels=32)).eval()
    for mlp in model.sam.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data *= 40
    model.sam.mask_decoder.iou_prediction_head.layers[-1].weight.data *= 10
    model.sam.mask_decoder.iou_prediction_head.layers[-1].bias.data += 2.0
    return model


@pytest.fixture(scope="module")
def config(model):
    """Thresholds that a part of the candidates fail, so that every filter has work to do."""
    everything = PseudoLabelConfig(6, 0.0, 0.0, 0.1, 1.0, 1.0, None)
    images = [scene(5), scene(5)[40:]]
    found = [AutomaticMasks(model, everything)(embed(model, image), image.shape[:2]) for image in images]
    scores, stability = (torch.cat([each[key] for each in found]) for key in ("iou_preds", "stability_score"))
    least = scores.median()
    return PseudoLabelConfig(
        6, least.item(), stability[scores > least].quantile(0.3).item(), 0.1, 0.8, 1.0, None
    )


def scene(seed: int) -> np.ndarray:
    return make_scene(np.random.default_rng(seed), Style()).image


def embed(model: Sum, image: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(model.preprocess(image)[None])


def unlabeled(count: int) -> Dataset:
    def entry(k: int) -> Entry:
        image = scene(k)[: 64 - 8 * (k % 2)]  # square and oblong images
        return Entry(
            f"sa_{k}", Path(f"sa_{k}.jpg"), lambda: (image, np.zeros((0, *image.shape[:2]), bool), {})
        )

    return Dataset("SA-1B", 0, [entry(k) for k in range(count)])


@pytest.mark.parametrize("crop", [slice(None), slice(40)], ids=["square", "oblong"])
def test_masks_are_those_of_the_official_generator(crop):
    """On the shipped foundation model: same masks, points and scores, in the same order."""
    config = PseudoLabelConfig(8, 0.6, 0.75, 1.0, 0.8, 1.0, None)
    model, image = Sum(load_sam("micro", SAMPLE / "foundation" / "sam.safetensors")).eval(), scene(5)[crop]
    find = AutomaticMasks(model, config, batch=50)
    ours = find(embed(model, image), image.shape[:2])
    official = SamAutomaticMaskGenerator(
        model.sam,
        points_per_side=8,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_thresh,
        stability_score_offset=config.stability_offset,
        box_nms_thresh=config.nms_thresh,
        output_mode="uncompressed_rle",
    ).generate(image)
    counts = find.tally.counts
    assert (
        counts["candidates"]
        == 192
        > counts["predicted_iou"]
        > counts["stability"]
        == counts["area"]
        > counts["nms"]
        == len(official)
        >= 3
    )
    assert (
        find.tally.histograms["predicted_iou"].sum() == 192
        and find.tally.histograms["stability"].sum() == counts["predicted_iou"]
    )
    assert np.allclose(ours["iou_preds"], [item["predicted_iou"] for item in official], atol=1e-5)
    assert np.allclose(ours["stability_score"], [item["stability_score"] for item in official], atol=1e-3)
    assert np.allclose(ours["points"], [item["point_coords"][0] for item in official])
    differing = [
        np.sum(mask != rle_to_mask(item["segmentation"]))
        for mask, item in zip(ours["masks"].numpy(), official)
    ]
    assert sum(differing) <= 1  # a logit may change its sign by rounding
    x0, y0, x1, y1 = ours["boxes"].T
    assert np.array_equal(torch.stack([x0, y0, x1 - x0, y1 - y0], 1), [item["bbox"] for item in official])
    assert torch.equal(model.upscale(ours["low"][:, None], image.shape[:2])[:, 0] > 0, ours["masks"])


def test_large_masks_are_dropped(model, config):
    found = AutomaticMasks(model, dataclasses.replace(config, max_area_fraction=0.3))(
        embed(model, scene(5)), (64, 64)
    )
    assert len(found["area"]) and found["area"].max() < 0.3 * 64 * 64


def test_maps_keep_the_mask_and_half_a_step_of_the_probability():
    logits = torch.linspace(-9, 9, 4 * 5).view(1, 4, 5)
    values = torch.from_numpy(decode_map(encode_map(logits)[0]))[None]
    assert torch.equal(values >= 128, logits > 0)
    assert (values / 255 - logits.sigmoid()).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.allclose(map_logits(values)[0, 1:3], logits[0, 1:3].clamp(-6.24, 6.24), atol=0.5)


def test_a_killed_run_resumes_to_the_same_bytes(model, config, tmp_path, monkeypatch):
    images = unlabeled(5)
    monkeypatch.setattr(store, "BLOCK", 2)
    tally = generate(model, images, config, tmp_path / "whole.parquet", progress=False)
    assert tally.images == 5 and tally.counts["nms"] == len(pq.read_table(tmp_path / "whole.parquet"))
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob("*.tmp"))

    def killed(model, samples, find, real=store._rows):
        if samples[0].name == "sa_4":
            raise KeyboardInterrupt
        return real(model, samples, find)

    monkeypatch.setattr(store, "_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        generate(model, images, config, tmp_path / "a.parquet", parts=tmp_path / "parts", progress=False)
    assert not (tmp_path / "a.parquet").exists() and len(list((tmp_path / "parts").iterdir())) == 2
    monkeypatch.undo()
    monkeypatch.setattr(store, "BLOCK", 2)
    made, real = [], store._rows
    monkeypatch.setattr(
        store,
        "_rows",
        lambda model, samples, find: made.append(samples[0].name) or real(model, samples, find),
    )
    generate(model, images, config, tmp_path / "a.parquet", parts=tmp_path / "parts", progress=False)
    assert made == ["sa_4"]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_parts_of_another_configuration_are_made_again(model, config, tmp_path, monkeypatch):
    images = unlabeled(2)
    monkeypatch.setattr(store.shutil, "rmtree", lambda path: None)  # leave the parts of a finished run
    generate(model, images, config, tmp_path / "a.parquet", parts=tmp_path / "parts", progress=False)
    strict = dataclasses.replace(config, max_area_fraction=0.3)
    generate(model, images, strict, tmp_path / "b.parquet", parts=tmp_path / "parts", progress=False)
    assert (
        PseudoLabels(tmp_path / "b.parquet", refined=False).table(["area"])["area"].to_numpy().max()
        < 0.3 * 64 * 64
    )
    assert (
        PseudoLabels(tmp_path / "a.parquet", refined=False).table(["area"])["area"].to_numpy().max()
        >= 0.3 * 64 * 64
    )


@pytest.fixture(scope="module")
def files(model, config, tmp_path_factory) -> tuple[Path, Path]:
    """Pseudo-labels of three images, and the same with half of the logits as refined maps."""
    folder = tmp_path_factory.mktemp("pseudo")
    generate(model, unlabeled(3), config, folder / "masks.parquet", progress=False)

    def halve(embeddings, logits, boxes, points):
        assert embeddings.shape[0] == len(logits) == len(boxes) == len(points) and boxes.shape[1] == 4
        inside = logits[torch.arange(len(points)), points[:, 1].long(), points[:, 0].long()]
        assert logits.shape[1:] == (64, 64) and inside.shape == (len(points),)
        return logits / 2 - 0.5

    add_uncertainty(
        folder / "masks.parquet", folder / "small.parquet", model, halve, unlabeled(3), progress=False
    )
    return folder / "masks.parquet", folder / "small.parquet"


@pytest.mark.parametrize("memory", [2**20, 0], ids=["cached", "from disk"])
def test_what_is_read_is_what_was_found(model, config, files, memory):
    labels, images = PseudoLabels(files[1], memory=memory), unlabeled(3)
    assert labels.images == images.names and labels.record["images"] == len(labels) == 3
    for sample in images:
        found = AutomaticMasks(model, config)(embed(model, sample.image), sample.image.shape[:2])
        for label in (labels[sample.name], labels[sample.name]):
            height, width = sample.image.shape[:2]
            assert np.array_equal(label.masks, found["masks"]) and label.masks.dtype == bool
            s = found["low"][:, :height, :width]
            r = map_logits((255 * s.sigmoid()).round()) / 2 - 0.5
            assert (
                label.certainty.shape == label.refined.shape == label.masks.shape
                and label.certainty.dtype == np.float32
            )
            assert (
                np.abs(label.certainty - (1 - (s.sigmoid() - r.sigmoid()).abs()).numpy()).max() < 1.01 / 255
            )
            assert np.array_equal(label.refined[(r.abs() > 0.02).numpy()], (r > 0)[r.abs() > 0.02])
            assert np.allclose(label.points, found["points"]) and np.allclose(label.boxes, found["boxes"])
            assert np.allclose(label.predicted_iou, found["iou_preds"]) and np.allclose(
                label.stability, found["stability_score"]
            )


def test_errors_name_the_file_and_the_remedy(model, files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.parquet.*dvc repro pseudo_label"):
        PseudoLabels(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"masks\.parquet: has no refined maps; run `dvc repro uncertainty`"):
        PseudoLabels(files[0])
    assert PseudoLabels(files[0], refined=False)["sa_0"].refined is None
    with pytest.raises(KeyError, match="no masks of image 'sa_9'"):
        PseudoLabels(files[1])["sa_9"]
    (tmp_path / "cut.parquet").write_bytes(files[1].read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a complete Parquet file"):
        PseudoLabels(tmp_path / "cut.parquet")
    with pytest.raises(ValueError, match="image 'sa_1' is not in SA-1B"):
        add_uncertainty(
            files[0], tmp_path / "out.parquet", model, lambda e, s, b, p: s, unlabeled(1), progress=False
        )
    assert not (tmp_path / "out.parquet").exists()
