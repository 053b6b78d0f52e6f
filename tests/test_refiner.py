"""The refinement module: its input, training pairs, training on held-out masks, file, measurement."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything.utils.amg import calculate_stability_score
from small import changed_package, entity_samples

from sumlib.base.masks import mask_box
from sumlib.config.params import RefineConfig, load_config
from sumlib.data.dataset import Sample
from sumlib.losses import dice_loss, focal_loss
from sumlib.methods.hq_sam import HqSum
from sumlib.metrics import boundary_iou, mask_iou
from sumlib.model.micro_sam import build_sam_micro
from sumlib.model.sum import Sum
from sumlib.refiner.measure import before_and_after, measure_refinement
from sumlib.refiner.module import (
    LOGIT_LIMIT,
    Refiner,
    load_refiner,
    refine,
    save_refiner,
)
from sumlib.refiner.pairs import Pairs, make_pairs
from sumlib.refiner.training import _checkpoint, refinement_loss, train_refiner
from sumlib.sampler import first_click

CONFIG = replace(
    load_config("smoke").refine,
    iterations=12,
    images=2,
    masks_per_image=2,
    lr=2e-3,
    min_iou=0.0,
    pred_iou_thresh=0.0,
    stability_thresh=0.0,
    stability_offset=0.01,
    holdout=0.25,
    seed=0,
)


@pytest.fixture(scope="module")
def model() -> Sum:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Sum(build_sam_micro(width=32, depth=2, channels=32)).eval()
    model.sam.mask_decoder.iou_prediction_head.layers[
        -1
    ].bias.data += 2.0  # an untrained model predicts about 0
    return model


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return entity_samples(8)


def embed(model: Sum, samples: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(torch.stack([model.preprocess(s.image) for s in samples]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(model: Sum, samples: list[Sample]) -> tuple[torch.Tensor, ...]:
    g = generator()
    boxes = torch.tensor([[5.0, 6.0, 40.0, 50.0], [1.0, 2.0, 30.0, 20.0]])
    return (
        embed(model, samples[:2]),
        torch.randn(2, 64, 64, generator=g) * 5,
        boxes,
        torch.tensor([[8.0, 9.0], [3.0, 4.0]]),
    )


def test_an_untrained_refiner_is_sam_given_mask_box_and_point(model, samples):
    e, logits, boxes, points = inputs(model, samples)
    for b in range(2):  # as SAM's own classes, one image at a time
        clamped = logits[b, None, None].clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        with torch.no_grad():
            sparse, dense = model.sam.prompt_encoder(
                points=(points[b, None, None], torch.ones(1, 1)), boxes=boxes[b, None], masks=clamped
            )
            expected, _ = model.sam.mask_decoder(
                e[b, None], model.sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False
            )
        assert torch.allclose(
            refine(Refiner.of(model), e, logits, boxes, points)[b], expected[0, 0], atol=1e-4
        )


def test_only_prompt_encoder_and_decoder_are_trained_and_foundation_stays(model):
    refiner = Refiner.of(model)
    trained = {id(p) for p in refiner.parameters() if p.requires_grad}
    assert trained and trained.isdisjoint({id(p) for p in model.parameters()})
    assert not refiner.network.task_prompt.weight.requires_grad
    assert all(name.startswith(("prompt_encoder.", "mask_decoder.")) for name in refiner.trained())


def test_pairs_are_the_best_output_of_a_point_in_the_mask(model, samples):
    target = torch.from_numpy(np.concatenate([samples[0].masks[:2], samples[1].masks[:1]]))
    e, image = embed(model, samples[:2]), torch.tensor([0, 0, 1])
    pairs = make_pairs(model, e, image, target, CONFIG, generator=generator())
    assert len(pairs) and pairs.image.tolist() == sorted(pairs.image.tolist())
    for k in range(len(pairs)):
        x, y = pairs.points[k].long().tolist()
        assert pairs.target[k, y, x]
        with torch.no_grad():
            low, _ = model.decode(
                e[pairs.image[k]][None], points=pairs.points[k][None, None], labels=torch.ones(1, 1)
            )
        best = mask_iou(low[0, 1:] > 0, pairs.target[k].expand(3, -1, -1)).argmax()
        assert torch.allclose(pairs.logits[k], low[0, 1 + best], atol=1e-5)
        rows, columns = np.where(pairs.masks[k])
        assert pairs.boxes[k].tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.mark.parametrize("key", ["min_iou", "pred_iou_thresh", "stability_thresh"])
def test_each_filter_drops_what_is_below_it(model, samples, key):
    target = torch.from_numpy(np.concatenate([s.masks for s in samples]))
    image = torch.tensor([b for b, s in enumerate(samples) for _ in s.masks])
    e = embed(model, samples)
    everything = make_pairs(model, e, image, target, CONFIG, generator=generator())
    values = {
        "min_iou": mask_iou(everything.masks, everything.target),
        "stability_thresh": calculate_stability_score(everything.logits, 0.0, CONFIG.stability_offset),
    }
    scores = [
        model.decode(e[i][None], points=p[None, None], labels=torch.ones(1, 1))
        for i, p in zip(everything.image, everything.points)
    ]
    best = [
        mask_iou(low[0, 1:] > 0, t.expand(3, -1, -1)).argmax()
        for (low, _), t in zip(scores, everything.target)
    ]
    values["pred_iou_thresh"] = torch.stack([iou[0, 1 + k].detach() for (_, iou), k in zip(scores, best)])
    ordered = values[key].sort().values
    middle = len(ordered) // 2
    limit = (ordered[middle - 1] + ordered[middle]).item() / 2
    kept = make_pairs(
        model, e, image, target, RefineConfig(**{**CONFIG.__dict__, key: limit}), generator=generator()
    )
    assert len(kept) == int((values[key] >= limit).sum()) and 0 < len(kept) < len(everything)


def test_loss_is_sams(model, samples):
    e, logits, boxes, points = inputs(model, samples)
    target = torch.from_numpy(np.stack([samples[0].masks[0], samples[1].masks[0]]))
    pairs = Pairs(torch.arange(2), logits, boxes, points, target, logits > 0)
    low, score = Refiner.of(model)(e, logits, boxes, points)
    expected = (
        20 * focal_loss(low, target) + dice_loss(low, target) + (score - mask_iou(low > 0, target)) ** 2
    )
    assert torch.isclose(refinement_loss(Refiner.of(model), e, pairs, CONFIG), expected.mean())


@pytest.fixture(scope="module")
def plain() -> list[Sample]:
    """Images with one large mask, which even an untrained encoder lets a decoder learn."""
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    mask = np.zeros((1, 64, 64), bool)
    mask[:, 6:60, 6:60] = True
    return [Sample(f"image{k}", image, mask, 1, "HQSeg-44K") for k, image in enumerate(images)]


@pytest.fixture(scope="module")
def trained(model, plain):
    return train_refiner(model, plain, CONFIG, generator=generator(), progress=False)


def test_training_keeps_the_state_that_is_best_on_held_out_masks(model, samples, plain, trained):
    refiner, log = trained
    merit = log["iou"] + log["biou"]
    assert log["step"].tolist() == [0, *range(1, 13)] and merit.max() > merit[0] + 0.1
    assert log["sam_iou"].nunique() == 1 and log["loss"][1:].notna().all()
    assert not all(
        torch.equal(a, b) for a, b in zip(refiner.trained().values(), Refiner.of(model).trained().values())
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again, same = train_refiner(model, plain, CONFIG, generator=generator(), progress=False)
    assert log.equals(same) and all(
        torch.equal(a, b) for a, b in zip(refiner.trained().values(), again.trained().values())
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    _, uncached = train_refiner(model, plain, CONFIG, generator=generator(), progress=False, memory=0)
    assert np.allclose(
        uncached["iou"], log["iou"], atol=0.02
    )  # encoded in other batches: equal up to rounding
    worse, log = train_refiner(
        model, samples, CONFIG, generator=generator(), progress=False
    )  # nothing to learn there
    assert (log["iou"] + log["biou"]).idxmax() == 0
    assert all(
        torch.equal(a, b) for a, b in zip(worse.trained().values(), Refiner.of(model).trained().values())
    )


@pytest.mark.parametrize("memory", [2**30, 200_000])
def test_a_killed_training_ends_with_the_same_refiner(model, plain, tmp_path, monkeypatch, memory):
    train = partial(train_refiner, model, plain, CONFIG, progress=False, memory=memory)
    expected, log = train(generator=generator())
    path, steps = tmp_path / "refiner.pt", []

    def dying(*args):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return refinement_loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr("sumlib.refiner.training.refinement_loss", dying)
        with pytest.raises(KeyboardInterrupt):
            train(generator=generator(), resume=path, fingerprint="a")
    kept = path.read_bytes()
    resumed, again = train(generator=generator(), resume=path, fingerprint="a")
    assert (
        log.equals(again)
        and all(torch.equal(a, b) for a, b in zip(expected.trained().values(), resumed.trained().values()))
        and not path.exists()
    )
    path.write_bytes(kept)
    with monkeypatch.context() as patch:  # one of another fingerprint is not used
        patch.setattr(
            "sumlib.refiner.training.refinement_loss", lambda *args: steps.append(1) or refinement_loss(*args)
        )
        steps.clear()
        train(generator=generator(), resume=path, fingerprint="b")
    assert len(steps) == CONFIG.iterations


@pytest.mark.parametrize(
    "changed", ["nothing", "words", "losses.py", "model/fast_decoder.py", "a pixel", "a mask"]
)
def test_a_training_goes_on_only_if_neither_code_nor_data_changed(
    model, plain, tmp_path, monkeypatch, capsys, changed
):
    config, path, steps = replace(CONFIG, iterations=10), tmp_path / "refiner.pt", []

    def counting(*args):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return refinement_loss(*args)

    monkeypatch.setattr("sumlib.refiner.training.refinement_loss", counting)
    with pytest.raises(KeyboardInterrupt):
        train_refiner(model, plain, config, generator=generator(), progress=False, resume=path)
    samples = list(plain)
    if changed == "words":
        root = changed_package(tmp_path, "losses.py", '"""', '"""Other words. ')
        monkeypatch.setattr("sumlib.base.code.ROOT", root)
    elif changed.endswith(".py"):
        root = changed_package(tmp_path, changed, "return", "return 2 *")
        monkeypatch.setattr("sumlib.base.code.ROOT", root)
    elif changed != "nothing":
        image, masks = samples[5].image.copy(), samples[5].masks.copy()
        if changed == "a pixel":
            image[0, 0, 0] ^= 1
        else:
            masks[0, 0, 0] ^= True
        samples[5] = replace(samples[5], image=image, masks=masks)
    steps[:] = [0] * 10  # past the kill
    capsys.readouterr()
    train_refiner(model, samples, config, generator=generator(), progress=False, resume=path)
    kept = changed in ("nothing", "words")
    assert len(steps) - 10 == (7 if kept else 10)
    message = "refiner.pt: the checkpoint is of another configuration, code or data; starting anew\n"
    assert capsys.readouterr().out == ("" if kept else message)


def test_no_pair_passes(model, samples):
    strict = RefineConfig(**{**CONFIG.__dict__, "min_iou": 1.0, "holdout": 0.0})
    with pytest.raises(ValueError, match=r"none of SAM's masks .* lower refine\.pred_iou_thresh"):
        train_refiner(model, samples, strict, generator=generator(), progress=False)


def test_saved_and_loaded(model, samples, trained, tmp_path):
    path = tmp_path / "small.safetensors"
    save_refiner(path, trained[0], {"budget": "small", "steps": 3})
    written = path.read_bytes()
    loaded, metadata = load_refiner(path, model)
    given = inputs(model, samples)
    assert torch.equal(refine(loaded, *given), refine(trained[0], *given)) and metadata == {
        "budget": "small",
        "steps": 3,
    }
    save_refiner(path, loaded, metadata)
    assert path.read_bytes() == written
    with pytest.raises(FileNotFoundError, match=r"medium\.safetensors.*dvc repro refine@medium"):
        load_refiner(tmp_path / "medium.safetensors", model)
    with pytest.raises(ValueError, match="another architecture"):
        load_refiner(path, Sum(build_sam_micro(width=32, depth=2, channels=64)))
    save_file(load_file(path), path, {"refiner": '{"budget": '})
    with pytest.raises(ValueError, match=r"small\.safetensors: its metadata are broken; run `dvc repro"):
        load_refiner(path, model)
    path.write_bytes(written[:-10])
    with pytest.raises(ValueError, match=r"small\.safetensors: not a complete safetensors file"):
        load_refiner(path, model)


def test_measurement_counts_pixels_and_masks(model, samples, trained):
    levels = {"entity": samples[:2], "salient": samples[:1]}
    result = measure_refinement(model, trained[0], levels, bins=4, progress=False)
    json.dumps(result)
    masks = result["levels"]["entity"]
    assert masks["image"] == [s.name for s in samples[:2] for _ in s.masks] and {
        len(v) for v in masks.values()
    } == {len(masks["image"])}
    sure = result["certainty"]
    pixels = 64 * 64 * (2 * len(samples[0].masks) + len(samples[1].masks))
    assert sure["image"] == ["image0", "image1"] and sum(sure["certain"]) + sum(sure["uncertain"]) == pixels
    assert sum(b["pixels"] for b in sure["bins"]) == pixels and [b["low"] for b in sure["bins"]] == [
        0,
        0.25,
        0.5,
        0.75,
    ]
    correct = sum(sure["certain_correct"]) + sum(sure["uncertain_correct"])
    assert sum(b["correct"] for b in sure["bins"]) == correct <= pixels


def test_measurement_by_hand(samples):
    """A SAM that is right but for one row and a refiner that mends it, without networks."""
    target = torch.from_numpy(samples[0].masks[:1])
    wrong = target.clone()
    wrong[:, :2] = True
    logits = lambda mask: torch.where(mask, 4.0, -4.0)
    outputs = torch.stack([logits(~target), logits(~target), logits(wrong), logits(~target)], 1)
    fake = SimpleNamespace(
        encode=lambda pixels: torch.zeros(1, 1, 16, 16),
        preprocess=lambda image: torch.zeros(3, 64, 64),
        to_input_frame=lambda xy, size: xy,
        upscale=lambda low, size: low,
        decode=lambda e, points, labels: (outputs, torch.ones(1, 4)),
    )

    def mend(embeddings, low, boxes, points):
        assert (
            torch.equal(low[0], outputs[0, 2])
            and boxes[0, 1] == 0
            and target[0, int(points[0, 1]), int(points[0, 0])]
        )
        return logits(target), None

    mend.embed = lambda embeddings, pixels: embeddings
    sample = Sample("a", samples[0].image, target.numpy(), 2, "x")
    result = measure_refinement(fake, mend, {"entity": [sample]}, progress=False)
    assert result["levels"]["entity"] == {
        "image": ["a"],
        "sam_iou": [round(mask_iou(wrong, target).item(), 6)],
        "refined_iou": [1.0],
        "sam_biou": [round(boundary_iou(wrong, target).item(), 6)],
        "refined_biou": [1.0],
    }
    changed = int((wrong != target).sum())
    sure = result["certainty"]
    assert (sure["certain"], sure["certain_correct"]) == ([4096 - changed],) * 2 and (
        sure["uncertain"],
        sure["uncertain_correct"],
    ) == ([changed], [0])


@pytest.mark.parametrize("prompt", ["point", "box"])
@torch.no_grad()
def test_before_and_after_by_prompt(model, samples, prompt):
    sample, seen = samples[0], []
    target = torch.from_numpy(sample.masks)

    def echo(embeddings, low, boxes, points):
        seen.append((boxes, points))
        return -low, None

    echo.embed = lambda embeddings, pixels: embeddings
    before, after = before_and_after(model, echo, sample, target, prompt)
    assert torch.equal(after, -before)
    embedding = model.encode(model.preprocess(sample.image)[None]).expand(len(target), -1, -1, -1)
    given = (
        {"boxes": mask_box(target)}
        if prompt == "box"
        else {"points": first_click(target)[:, None].float(), "labels": torch.ones(len(target), 1)}
    )
    outputs = model.decode(embedding, **given)[0][:, 1:]
    iou = torch.stack([mask_iou(outputs[:, k] > 0, target) for k in range(3)], 1)
    assert torch.allclose(before, outputs[torch.arange(len(target)), iou.argmax(1)], atol=1e-5)
    boxes, points = seen[0]
    assert torch.equal(boxes, mask_box(before > 0))
    at = points.round().long()
    if prompt == "point":
        assert torch.equal(at, first_click(target))
    else:  # a point of SAM's own mask, or the box's centre where it is empty
        some = (before > 0).flatten(1).any(1)
        assert (before > 0)[torch.arange(len(at)), at[:, 1], at[:, 0]][some].all()
        assert torch.allclose(points[~some], mask_box(target).view(-1, 2, 2).mean(1)[~some])


def test_a_refiner_with_nan_is_refused(tmp_path, model):
    refiner = Refiner.of(model)
    with torch.no_grad():
        refiner.network.sam.mask_decoder.iou_token.weight[0, 0] = torch.nan
    save_refiner(tmp_path / "small.safetensors", refiner, {})
    message = "small.safetensors: .*iou_token.weight has NaN or infinite values; run `dvc repro refine@small`"
    with pytest.raises(ValueError, match=message):
        load_refiner(tmp_path / "small.safetensors", model)


def test_an_unknown_prompt_is_refused(model, samples):
    with pytest.raises(ValueError, match="no prompt 'scribble'; known are point and box"):
        before_and_after(model, None, samples[0], torch.from_numpy(samples[0].masks), "scribble")


def test_a_training_depends_on_torch_and_on_the_code_of_its_model(samples, tmp_path, monkeypatch):
    def mark(kind) -> str:
        return _checkpoint(tmp_path / "x.pt", "a", samples, (kind, Refiner, make_pairs)).fingerprint

    first = mark(Sum)
    assert mark(Sum) == first != mark(HqSum)
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert mark(Sum) != first
