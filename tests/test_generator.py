"""The mask generator: SAM's own records without a task, an exported SAM's with one, in HQ-SAM's, too."""

from functools import cache

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator

from sumlib.base.paths import SAMPLE
from sumlib.data.images import read_image
from sumlib.methods.hq_sam import HqSum
from sumlib.model.checkpoint import load_sam
from sumlib.model.generator import SumMaskGenerator
from sumlib.model.sum import Sum

OPEN = {"points_per_side": 8, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.6}
SETTINGS = {
    "open": OPEN,
    "no filter": {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
    "crops": OPEN | {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.3},
    "own points": OPEN | {"points_per_side": None, "point_grids": [np.array([[0.5, 0.5], [0.2, 0.7]])]},
    "small regions": OPEN | {"min_mask_region_area": 20, "output_mode": "uncompressed_rle"},
    "coco": OPEN
    | {
        "output_mode": "coco_rle",
        "points_per_batch": 5,
        "box_nms_thresh": 0.4,
        "stability_score_offset": 0.5,
    },
}


@cache
def image() -> np.ndarray:
    """Four micro scenes beside one another, (120, 128, 3): not square, and larger than the model's input."""
    paths = sorted((SAMPLE / "dev" / "images").iterdir())[:4]
    scenes = [read_image(path) for path in paths]
    assert {scene.shape for scene in scenes} == {(64, 64, 3)}
    return np.concatenate([np.concatenate(scenes[k : k + 2], 1) for k in (0, 2)])[:120]


def foundation(seed: int = 0, kind: type[Sum] = Sum) -> Sum:
    """The micro SAM with random vectors of the tasks, large enough to change masks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(load_sam("micro", SAMPLE / "foundation" / "sam.safetensors")).eval()
        torch.nn.init.normal_(model.task_prompt.weight, std=0.5)
    return model


def assert_same_records(actual: list[dict], expected: list[dict]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        np.testing.assert_equal(one, other)  # exactly, NaN (the stability of an empty mask) included


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_without_a_task_the_records_are_sams(settings):
    model = foundation()
    expected = SamAutomaticMaskGenerator(model.sam, **settings).generate(image())
    assert expected, "this proves nothing"
    assert_same_records(SumMaskGenerator(model, **settings).generate(image()), expected)


@pytest.mark.parametrize("settings", [SETTINGS[name] for name in ("open", "crops")], ids=["open", "crops"])
def test_with_a_task_they_are_those_of_a_sam_with_the_task_in_its_no_mask_embedding(settings):
    model, exported = foundation(), load_sam("micro", SAMPLE / "foundation" / "sam.safetensors")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        exported.prompt_encoder.no_mask_embed.weight += model.task_prompt.weight[2]
    expected = SamAutomaticMaskGenerator(exported, **settings).generate(image())
    plain = SamAutomaticMaskGenerator(model.sam, **settings).generate(image())
    assert [r["predicted_iou"] for r in plain] != [r["predicted_iou"] for r in expected]
    assert_same_records(SumMaskGenerator(model, task=2, **settings).generate(image()), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_arguments_may_be_given_by_place_as_to_sams():
    model = foundation()
    expected = SamAutomaticMaskGenerator(model.sam, 4, 16, 0.5, 0.6).generate(image())
    assert_same_records(SumMaskGenerator(model, 4, 16, 0.5, 0.6).generate(image()), expected)


@torch.no_grad()
def test_in_hq_sams_architecture_the_records_are_what_its_decoder_gives():
    model, size = foundation(kind=HqSum), image().shape[:2]
    everything = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    found = SumMaskGenerator(model, box_nms_thresh=1.0, **everything).generate(image())
    points = torch.tensor([[x, y] for y in (30.0, 90.0) for x in (32.0, 96.0)], dtype=torch.double)
    embedding = model.encode(model.preprocess(image())[None]).expand(4, -1, -1, -1)
    framed = model.to_input_frame(points, size)[:, None]
    low, scores = model.decode(embedding, points=framed, labels=torch.ones(4, 1))
    masks = (model.upscale(low[:, 1:], size) > 0).flatten(0, 1).numpy()
    expected = {
        (*points[k // 3].tolist(), score): mask
        for k, (score, mask) in enumerate(zip(scores[:, 1:].flatten().tolist(), masks))
    }
    assert len(found) == len(expected) == 12
    for record in found:
        mask = expected.pop((*record["point_coords"][0], record["predicted_iou"]))
        assert np.array_equal(record["segmentation"], mask) and record["area"] == mask.sum()


def test_hq_sams_architecture_takes_the_task_of_its_head():
    model = foundation(kind=HqSum)
    plain = SumMaskGenerator(model, **OPEN).generate(image())
    assert_same_records(SumMaskGenerator(model, task=1, **OPEN).generate(image()), plain)  # zero vectors
    with torch.no_grad():
        torch.nn.init.normal_(model.hq.task_masks.weight[1:], std=0.3)
    found = SumMaskGenerator(model, task=1, **OPEN).generate(image())
    plain = SumMaskGenerator(model, **OPEN).generate(image())
    assert [r["predicted_iou"] for r in found] != [r["predicted_iou"] for r in plain]


@pytest.mark.parametrize("layers", [0, 1])
def test_no_mask_gives_no_record(layers):
    strict = {"points_per_side": 2, "pred_iou_thresh": 2.0, "crop_n_layers": layers}
    assert SumMaskGenerator(foundation(), **strict).generate(image()) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32: convert it first, floats"),
        (np.zeros((8, 8), np.uint8), r"got \(8, 8\) uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"got \(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), r"got \(0, 8, 3\)"),
        ([[1, 2, 3]], "got list"),
    ],
)
def test_wrong_images_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        SumMaskGenerator(foundation(), **OPEN).generate(bad)


def test_wrong_tasks_and_modes_are_refused():
    with pytest.raises(ValueError, match="no task 4: known are 0 to 3"):
        SumMaskGenerator(foundation(), task=4)
    with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        SumMaskGenerator(foundation(kind=HqSum).train())
