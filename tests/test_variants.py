"""Other refinement modules: what they see, what is trained, and that all are measured on the same masks."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import test_refiner
import torch
from small import entity_samples

from sumlib.base.masks import mask_box
from sumlib.config.params import load_config
from sumlib.data.dataset import Sample
from sumlib.methods.hq_sam import HqSum
from sumlib.methods.refiner_variants import (
    METHOD,
    HqRefiner,
    compare_variants,
    masked_autoencoder,
    synthetic_pairs,
    variants,
)
from sumlib.model.checkpoint import load_sam
from sumlib.model.sum import Sum
from sumlib.refiner.module import Refiner, refine
from sumlib.refiner.training import train_refiner
from sumlib.report.refinement import changes

CONFIG = replace(test_refiner.CONFIG, iterations=2)
VARIANTS = load_config("smoke").variants


@pytest.fixture(scope="module")
def model() -> Sum:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Sum(load_sam("micro_b"))
    model.sam.mask_decoder.iou_prediction_head.layers[
        -1
    ].bias.data += 2.0  # an untrained model predicts about 0
    return model.eval()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return entity_samples(6)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_variant_trains_what_it_should(model, samples):
    expected = {
        "hq-mp": {"network.hq"},
        "hq-mp-sam": {"network.hq"},
        "no-filter": {"network.sam"},
        "synthetic": {"network.sam"},
        "mae": {"network.sam", "encoder"},
        "adapter": {"network.sam", "encoder"},
        "module": {"network.sam"},
    }
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    for key, variant in variants(CONFIG, replace(VARIANTS, mae_iterations=1)).items():
        start = variant.build(model, rng(), samples) if variant.build else Refiner.of(model)
        before = {name: value.clone() for name, value in start.state_dict().items()}
        after, log = train_refiner(
            model, samples, CONFIG, generator=rng(), progress=False, refiner=start, make=variant.make
        )
        trained = {name for name, p in after.named_parameters() if p.requires_grad}
        assert {
            ".".join(name.split(".")[: 2 if name.startswith("network") else 1]) for name in trained
        } == expected[key], key
        if key == "adapter":
            assert all(".adapter." in name for name in trained if name.startswith("encoder."))
        moved = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
        assert moved <= trained and np.isfinite(log["loss"][1:]).all() and not after.training, key
    assert all(torch.equal(value, frozen[name]) for name, value in model.state_dict().items())


def test_a_mask_only_module_sees_neither_box_nor_point(model, samples):
    pixels = model.preprocess(samples[0].image)[None]
    logits, boxes, points = (
        torch.randn(1, 64, 64, generator=rng()),
        torch.tensor([[4.0, 4, 30, 30]]),
        torch.tensor([[9.0, 9]]),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = HqSum(model.sam)
    for mask_only in (True, False):
        refiner = HqRefiner(head, mask_only).eval()
        seen = refiner.embed(torch.zeros(0), lambda: pixels)
        first, other = (
            refine(refiner, seen, logits, boxes, points),
            refine(refiner, seen, logits, boxes + 20, points + 20),
        )
        assert torch.equal(first, other) == mask_only and first.shape == (1, 64, 64)
        assert not torch.equal(first, refine(refiner, seen, -logits, boxes, points))


def test_synthetic_masks_are_near_the_human_ones_but_not_the_same(model, samples):
    target = torch.from_numpy(samples[0].masks)
    inside = torch.ones(target.shape, dtype=torch.bool)
    inside[:, :, 60:] = False
    pairs = synthetic_pairs(
        model,
        torch.zeros(1),
        torch.zeros(len(target), dtype=torch.long),
        target,
        CONFIG,
        generator=rng(),
        inside=inside,
    )
    assert (
        0 < len(pairs) <= len(target)
        and not pairs.masks[:, :, 60:].any()
        and torch.equal(pairs.boxes, mask_box(pairs.masks))
    )
    wrong = (pairs.masks != pairs.target).flatten(1).sum(1)
    assert (wrong > 0).all() and wrong.sum() < pairs.target.sum()
    assert pairs.target[torch.arange(len(pairs)), pairs.points[:, 1].long(), pairs.points[:, 0].long()].all()


def test_the_masked_autoencoder_learns_and_repeats(model, samples):
    def weights(iterations: int, seed: int = 0) -> torch.Tensor:
        return torch.cat(
            [
                p.flatten()
                for p in masked_autoencoder(
                    model,
                    samples,
                    replace(VARIANTS, mae_iterations=iterations, mae_images=2),
                    generator=rng(seed),
                    progress=False,
                ).parameters()
            ]
        )

    state = torch.get_rng_state()
    fresh, trained = weights(0), weights(2)
    assert (
        torch.equal(trained, weights(2))
        and not torch.equal(trained, fresh)
        and not torch.equal(trained, weights(2, seed=1))
    )
    assert torch.equal(state, torch.get_rng_state()) and not torch.equal(
        fresh, torch.cat([p.flatten() for p in model.sam.image_encoder.parameters()])
    )


def test_training_in_bfloat16_is_that_in_full_precision(model, samples):
    """Autocast's cache would hold the weights as they were at the start."""
    settings = replace(CONFIG, iterations=6, lr=1e-3)
    _, log = train_refiner(model, samples, settings, generator=rng(), progress=False)
    _, logs = compare_variants(
        model,
        {},
        samples,
        samples,
        {"A": samples[:1]},
        settings,
        {"module": variants(CONFIG, VARIANTS)["module"]},
        progress=False,
    )
    exact, found = log["loss"][1:].to_numpy(), logs[METHOD]["loss"][1:].to_numpy()
    assert exact[-1] < 0.5 * exact[0] and np.allclose(found, exact, rtol=0.03)


def test_killed_variants_go_on_where_they_were(model, samples, tmp_path, monkeypatch):
    chosen = {
        key: variant for key, variant in variants(CONFIG, VARIANTS).items() if key in ("synthetic", "module")
    }
    compare = partial(
        compare_variants, model, {}, samples, samples, {"A": samples[:2]}, CONFIG, chosen, progress=False
    )
    expected, logs = compare()
    trained = []

    def dying(*args, **options):
        trained.append(options["make"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_refiner(*args, **options)

    monkeypatch.setattr("sumlib.methods.refiner_variants.train_refiner", dying)
    with pytest.raises(KeyboardInterrupt):
        compare(resume=tmp_path / "variants", fingerprint="a")
    (tmp_path / "variants" / "mine.txt").write_text("a file of mine")
    found, again = compare(resume=tmp_path / "variants", fingerprint="a")
    assert len(trained) == 3 and trained[1] is trained[2]  # the first one was not trained again
    assert (
        found == expected
        and all(log.equals(again[title]) for title, log in logs.items())
        and [path.name for path in (tmp_path / "variants").iterdir()] == ["mine.txt"]
    )


def test_finished_variants_are_made_again_if_an_image_changed(model, samples, tmp_path, monkeypatch, capsys):
    chosen = {
        key: variant for key, variant in variants(CONFIG, VARIANTS).items() if key in ("synthetic", "module")
    }
    compare = partial(compare_variants, model, {}, samples, samples, config=CONFIG, chosen=chosen)
    trained = []

    def dying(*args, **options):
        trained.append(options["make"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_refiner(*args, **options)

    monkeypatch.setattr("sumlib.methods.refiner_variants.train_refiner", dying)
    with pytest.raises(KeyboardInterrupt):
        compare({"A": samples[:2]}, progress=False, resume=tmp_path / "variants")
    image = samples[1].image.copy()
    image[0, 0, 0] ^= 1
    other = {"A": [samples[0], replace(samples[1], image=image)]}
    found = compare(other, progress=False, resume=tmp_path / "variants")
    assert len(trained) == 4 and "of another configuration, code or data" in capsys.readouterr().out
    assert found[0] == compare(other, progress=False)[0]


def test_variants_are_compared_on_the_same_masks_whatever_the_workers(model, samples):
    sets = {"A": samples[:2], "B": samples[2:4]}
    chosen = {
        key: variant for key, variant in variants(CONFIG, VARIANTS).items() if key in ("synthetic", "hq-mp")
    }
    (one, logs), (two, _) = (
        compare_variants(
            model,
            {METHOD: Refiner.of(model).eval()},
            samples,
            samples,
            sets,
            CONFIG,
            chosen,
            workers=n,
            progress=False,
        )
        for n in (1, 2)
    )
    assert list(one) == list(two) == ["HQ-SAM MP", "synthetic masks", METHOD] and set(logs) == {
        "HQ-SAM MP",
        "synthetic masks",
    }
    for title in one:
        assert one[title]["A"]["sam_iou"] == one[METHOD]["A"]["sam_iou"]
        assert np.allclose(one[title]["B"]["refined_iou"], two[title]["B"]["refined_iou"], atol=1e-3)
    table = changes(one, {"first": ["A"], "second": ["B"]}, draws=200)
    assert len(table) == 3 * 2 * 3 and (table["low"] <= table["high"]).all()
    row = table.set_index(["name", "metric", "task"]).loc[(METHOD, "mIoU", "first")]
    assert row["refined"] == pytest.approx(100 * np.mean(one[METHOD]["A"]["refined_iou"])) and row[
        "difference"
    ] == pytest.approx(row["refined"] - row["sam"])
    everything = table.query("name == @METHOD and metric == 'mIoU'").set_index("task")["sam"]
    assert everything["all"] == pytest.approx((everything["first"] + everything["second"]) / 2)
