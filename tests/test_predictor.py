"""The predictor: every architecture, certainty with and without a refinement module, what is refused."""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from small import small_sum

from sumlib.base.masks import mask_box
from sumlib.methods.hq_sam import HqSum
from sumlib.model.predictor import SumPredictor
from sumlib.model.sum import Sum
from sumlib.refiner.module import Refiner, refine
from sumlib.sampler import first_click

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
POINTS, LABELS = [[20, 30], [4, 7]], [1, 0]
PROMPTS = {
    "a point": {"point_coords": POINTS[:1], "point_labels": LABELS[:1]},
    "points": {"point_coords": POINTS, "point_labels": LABELS, "multimask_output": False},
    "a box": {"box": [3, 5, 30, 33]},
    "a box and points": {"box": [3, 5, 30, 33], "point_coords": POINTS, "point_labels": LABELS},
    "an earlier mask": {"mask_input": np.random.default_rng(1).normal(size=(1, 32, 32)) * 5},
    "nothing": {},
}


def model_of(kind: type[Sum], seed: int = 0) -> Sum:
    """Random weights, and task vectors that are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(small_sum(seed).sam).eval()
        torch.nn.init.normal_(model.task_prompt.weight)
        if kind is HqSum:
            torch.nn.init.normal_(model.hq.task_masks.weight[1:])
    return model


def arrays(prompt: dict) -> dict:
    """The prompt as SAM's own predictor wants it."""
    return {k: np.array(v) if isinstance(v, (list, np.ndarray)) else v for k, v in prompt.items()}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_lists_give_what_sams_predictor_gives_for_arrays(prompt):
    model = model_of(Sum)
    official, predictor = SamPredictor(model.sam), SumPredictor(model)
    official.set_image(IMAGE[..., ::-1], "BGR"), predictor.set_image(IMAGE[..., ::-1], "BGR")
    assert torch.equal(official.get_image_embedding(), predictor.get_image_embedding())
    for logits in (True, False):
        expected = official.predict(**arrays(prompt), return_logits=logits)
        for one, other in zip(predictor.predict(**prompt, return_logits=logits), expected, strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("kind", [Sum, HqSum])
@pytest.mark.parametrize("task", [None, 2])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@torch.no_grad()
def test_every_architecture_gives_what_its_decoder_gives(kind, task, prompt):
    model = model_of(kind)
    predictor = SumPredictor(model)
    predictor.set_image(IMAGE)
    masks, scores, low = predictor.predict(**prompt, task=task)
    framed = lambda values: model.to_input_frame(torch.tensor(values, dtype=torch.double), (40, 50))[None]
    given = {}
    if "point_coords" in prompt:
        given = {"points": framed(prompt["point_coords"]), "labels": torch.tensor([prompt["point_labels"]])}
    if "box" in prompt:
        given["boxes"] = framed(prompt["box"])
    if "mask_input" in prompt:
        given["mask_inputs"] = torch.tensor(prompt["mask_input"], dtype=torch.float)[None]
    embedding = model.encode(model.preprocess(IMAGE)[None])
    assert torch.equal(embedding, predictor.get_image_embedding())
    logits, quality = model.decode(embedding, **given, tasks=None if task is None else torch.tensor([task]))
    kept = slice(1, 4) if prompt.get("multimask_output", True) else slice(0, 1)
    assert np.array_equal(low, logits[0, kept].numpy()) and np.array_equal(scores, quality[0, kept].numpy())
    assert np.array_equal(masks, (model.upscale(logits[:, kept], (40, 50)) > 0)[0].numpy())
    if task is not None:
        other = SumPredictor(model, task=task)
        other.set_image(IMAGE)
        assert np.array_equal(other.predict(**prompt)[2], low)
        assert not np.array_equal(predictor.predict(**prompt)[2], low)


def test_several_prompts_at_once_in_hq_sams_architecture():
    predictor = SumPredictor(model_of(HqSum))
    predictor.set_image(IMAGE)
    boxes = torch.tensor([[2.0, 3, 20, 19], [9.0, 1, 30, 22]])
    both = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)
    assert both[0].shape == (2, 1, 40, 50) and both[1].shape == (2, 1) and both[2].shape == (2, 1, 32, 32)
    for k in range(2):
        alone = predictor.predict_torch(None, None, boxes[k : k + 1], None, False, True)
        for one, other in zip(alone, both):
            torch.testing.assert_close(one[0], other[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Sum, HqSum])
def test_without_a_refiner_certainty_is_the_models_own_confidence(kind):
    predictor = SumPredictor(model_of(kind))
    predictor.set_image(IMAGE)
    masks, scores, low, certainty = predictor.predict(**PROMPTS["a point"], task=1, return_uncertainty=True)
    logits, *same = predictor.predict(**PROMPTS["a point"], task=1, return_logits=True)
    assert certainty.shape == (3, 40, 50) and certainty.dtype == np.float32
    np.testing.assert_allclose(certainty, abs(2 / (1 + np.exp(-logits.astype(float))) - 1), atol=1e-6)
    assert np.array_equal(masks, logits > 0) and masks.dtype == bool
    assert all(np.array_equal(a, b) for a, b in zip((scores, low), same))
    both = predictor.predict(**PROMPTS["a point"], task=1, return_logits=True, return_uncertainty=True)
    assert np.array_equal(both[0], logits) and np.array_equal(both[3], certainty)


@pytest.mark.parametrize("kind", [Sum, HqSum])
@pytest.mark.parametrize("prompt", ["points", "a box"])
@torch.no_grad()
def test_with_a_refiner_certainty_is_its_agreement(kind, prompt):
    model, size = model_of(kind), (40, 50)
    refiner = Refiner.of(model_of(Sum, seed=3)).eval()
    predictor = SumPredictor(model, refiner=refiner)
    predictor.set_image(IMAGE)
    logits, _, low, certainty = predictor.predict(
        **PROMPTS[prompt], return_logits=True, return_uncertainty=True
    )
    masks = torch.from_numpy(logits > 0)
    assert masks.flatten(1).any(1).all(), "an empty mask proves nothing here"
    points = first_click(masks) if prompt == "a box" else torch.tensor(POINTS[:1]).expand(len(masks), -1)
    framed = lambda xy: model.to_input_frame(xy.double(), size)
    embedding = model.split(predictor.get_image_embedding())[0].expand(len(masks), -1, -1, -1)
    refined = refine(
        refiner, embedding, torch.from_numpy(low), framed(mask_box(masks)), framed(points.double())
    )
    r = model.upscale(refined[:, None], size)[:, 0].sigmoid()
    expected = 1 - (torch.from_numpy(logits).sigmoid() - r).abs()
    np.testing.assert_allclose(certainty, expected.numpy(), atol=1e-5)
    assert certainty.dtype == np.float32 and certainty.shape == logits.shape and certainty.std() > 0.01


def test_an_empty_mask_has_a_certainty_too():
    model = model_of(Sum)
    with torch.no_grad():
        for mlp in model.sam.mask_decoder.output_hypernetworks_mlps:
            for parameter in mlp.layers[-1].parameters():
                parameter.zero_()  # all logits are 0, so nothing is above the threshold
    predictor = SumPredictor(model, refiner=Refiner.of(model).eval())
    predictor.set_image(IMAGE)
    masks, _, _, certainty = predictor.predict(box=[3, 5, 30, 33], return_uncertainty=True)
    assert not masks.any() and np.isfinite(certainty).all()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"point_coords": POINTS}, "belong together"),
        ({"point_labels": LABELS}, "belong together"),
        ({"point_coords": [1, 2], "point_labels": [1]}, r"must be \(P, 2\) x, y in pixels, got \(2,\)"),
        ({"point_coords": [], "point_labels": []}, r"got \(0,\)"),
        ({"point_coords": POINTS, "point_labels": [1]}, r"must be \(2,\), one a point, got \(1,\)"),
        ({"point_coords": POINTS, "point_labels": [1, 2]}, r"1 inside, 0 outside.*\[1.0, 2.0\]"),
        ({"point_coords": [[1, "a"]], "point_labels": [1]}, "array or list of numbers"),
        ({"point_coords": [[1, np.nan]], "point_labels": [1]}, "not finite"),
        ({"box": [[0, 0, 1, 1], [0, 0, 2, 2]]}, "predict_torch takes several"),
        ({"box": [30, 5, 3, 33]}, "x0 <= x1"),
        ({"mask_input": np.zeros((3, 32, 32))}, r"mask_input must be \(1, 32, 32\).*got \(3, 32, 32\)"),
        ({"box": [0, 0, 9, 9], "task": 9}, "no task 9: known are 0 to 3"),
    ],
)
def test_wrong_prompts_are_refused_with_one_message(prompt, words):
    predictor = SumPredictor(model_of(Sum))
    predictor.set_image(IMAGE)
    with pytest.raises(ValueError, match=words) as caught:
        predictor.predict(**prompt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "image_format", "words"),
    [
        (IMAGE / 255.0, "RGB", "float64: convert it first, floats in"),
        (IMAGE[..., 0], "RGB", r"got \(40, 50\) uint8"),
        (IMAGE.astype(np.uint16), "RGB", "uint16"),
        (IMAGE.tolist(), "RGB", "got list"),
        (torch.from_numpy(IMAGE), "RGB", "got Tensor"),
        (IMAGE, "GBR", "known are RGB and BGR"),
    ],
)
def test_wrong_images_are_refused_with_one_message(image, image_format, words):
    with pytest.raises(ValueError, match=words):
        SumPredictor(model_of(Sum)).set_image(image, image_format)


def test_what_cannot_be_predicted_is_said():
    model = model_of(HqSum)
    with pytest.raises(RuntimeError, match="set_image"):
        SumPredictor(model).predict(box=[0, 0, 9, 9])
    with pytest.raises(RuntimeError, match="must be set"):
        SumPredictor(model).get_image_embedding()
    with pytest.raises(ValueError, match=r"\(1, 3, h, w\) with a longest side of 32, got \(1, 3, 40, 50\)"):
        SumPredictor(model).set_torch_image(torch.zeros(1, 3, 40, 50), (40, 50))
    with pytest.raises(ValueError, match="training mode"):
        SumPredictor(model.train())
