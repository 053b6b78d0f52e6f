"""Weights between SAM's and the tuned ones, the choice among them, and the learning curve."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from own_models import SURE, foundation, held_out, pushed, unlabeled
from small import small_sum

from sumlib.model.adapters import add_adapters, add_lora
from sumlib.model.checkpoint import load_sam
from sumlib.model.sum import Sum
from sumlib.pipeline.own.keep import choose_keep, enough, interpolated, learning_curve
from sumlib.pipeline.own.probe import Extent, make_probe


@pytest.fixture(scope="module")
def sam():
    return foundation()


@pytest.fixture(scope="module")
def tuned(sam):
    return pushed(sam, 0.2)


def pixels(model: Sum) -> torch.Tensor:
    return model.encode(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def same(one: Sum, other: Sum) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_both_ends_are_exact_and_the_middle_is_the_mean(sam, tuned):
    assert same(interpolated(tuned, sam, 0), sam) and same(interpolated(tuned, sam, 1), tuned)
    half = dict(interpolated(tuned, sam, 0.5).named_parameters())
    for (name, a), b in zip(sam.named_parameters(), tuned.parameters()):
        assert torch.allclose(half[name], (a + b) / 2, atol=1e-6), name
    vector = half["task_prompt.weight"][2]
    assert vector.any() and torch.allclose(vector, tuned.task_prompt.weight[2] / 2)


def test_neither_model_is_changed(sam, tuned):
    before = deepcopy(sam.state_dict()), deepcopy(tuned.state_dict())
    interpolated(tuned, sam, 0.3)
    for old, model in zip(before, (sam, tuned)):
        assert all(torch.equal(old[name], value) for name, value in model.state_dict().items())


def test_adapters_fade_out(sam):
    model = deepcopy(sam)
    add_adapters(model.sam.image_encoder, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in model.sam.image_encoder.blocks:
            for place in (block.attn.adapter, block.mlp.adapter):
                place.up.weight.normal_(generator=torch.Generator().manual_seed(1))
                place.up.bias.fill_(0.1)
    full, none, most = (
        pixels(model),
        pixels(interpolated(model, sam, 0)),
        pixels(interpolated(model, sam, 0.9)),
    )
    assert torch.equal(none, pixels(sam)) and torch.equal(pixels(interpolated(model, sam, 1)), full)
    assert 0 < (most - full).norm() < (none - full).norm()


def test_tasks_of_the_users_own_start_from_zero(sam):
    model = Sum(deepcopy(sam.sam), 6)
    with torch.no_grad():
        model.task_prompt.weight[5] = 2.0
    half = interpolated(model, sam, 0.25)
    assert half.task_prompt.weight[5].eq(0.5).all() and not half.task_prompt.weight[:5].any()


def test_other_architectures_are_refused_by_name(sam, tuned):
    with pytest.raises(ValueError, match="the share of the tuning that is kept, from 0 to 1"):
        interpolated(tuned, sam, 1.5)
    with pytest.raises(ValueError, match="architectures differ: only one model has the weight sam.image_enc"):
        interpolated(tuned, Sum(load_sam("micro")), 0.5)
    with pytest.raises(ValueError, match="image_encoder.pos_embed is"):
        interpolated(small_sum(0, size=64), sam, 0.5)
    with pytest.raises(ValueError, match="never trained, differs"):
        interpolated(small_sum(3), sam, 0.5)
    lora = deepcopy(sam)
    add_lora(lora.sam.image_encoder, 2)
    with pytest.raises(ValueError, match="merge low-rank updates first"):
        interpolated(lora, sam, 0.5)


# ---- the choice ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(sam):
    return make_probe(sam, unlabeled(3), SURE, extent=Extent(masks=5, prompts=("point",)), progress=False)


@pytest.fixture(scope="module")
def choice(sam, tuned, probe):
    return choose_keep(
        tuned, sam, held_out(5), probe, grid=(0.5, 1.0), tolerance=100, rounds=(1, 2), progress=False
    )


def test_the_curve_begins_with_sam_and_the_best_share_is_chosen(choice):
    curve = choice.curve.set_index("keep")
    assert list(curve.index) == [0, 0.5, 1] and curve.loc[0, "agreement"] > 99.9
    assert curve.loc[0, "gain"] == curve.loc[0, "lost"] == 0
    assert curve["agreement"].is_monotonic_decreasing and curve.loc[1, "agreement"] < 95
    assert curve["value"].round(1).max() == curve.loc[choice.keep, "value"].round(1)
    assert curve["chosen"].sum() == 1 and curve.loc[choice.keep, "chosen"]
    assert curve["value"].to_numpy() == pytest.approx(curve[["mIoU, 1", "mIoU, 2"]].mean(axis=1).to_numpy())
    assert curve["gain"].to_numpy() == pytest.approx(
        (curve["value"] - curve.loc[0, "value"]).to_numpy(), abs=1e-4
    )


def test_a_share_that_forgets_too_much_is_not_chosen(sam, tuned, probe):
    strict = choose_keep(
        tuned, sam, held_out(2), probe, grid=(1.0,), tolerance=0, rounds=(1,), progress=False
    )
    assert strict.keep == 0 and strict.curve["allowed"].tolist() == [True, False]
    assert "at most 0 points of agreement" in strict.rule


def test_the_honest_gain_scores_each_image_with_what_the_others_choose(choice):
    scored, images = choice.held_out, sorted(choice.held_out["image"].unique())
    gains = []
    for image in images:
        others = scored[scored["image"] != image].groupby("keep")["iou"].mean().mul(100).round(1)
        share = others.index[others.argmax()]
        own = scored[scored["image"] == image].groupby("keep")
        gains += list(100 * (own.get_group(share)["iou"].to_numpy() - own.get_group(0.0)["iou"].to_numpy()))
    assert choice.honest["value"] == pytest.approx(np.mean(gains), abs=1e-3)
    assert choice.honest["low"] <= choice.honest["value"] <= choice.honest["high"]


def test_the_figure_shows_both_curves(choice):
    above, below = choice.figure.axes
    assert len(above.lines) == 2 + 1 and below.lines[0].get_ydata()[0] > 99.9


def test_a_learning_curve_trains_once_for_each_number_of_masks(sam):
    asked = []

    def train(count: int) -> Sum:
        asked.append(count)
        return pushed(sam, 0.01 * count)

    curve = learning_curve(train, [20, 5], held_out(2), sam, rounds=(1,), progress=False)
    assert asked == [5, 20] and curve["masks"].tolist() == [0, 0, 5, 5, 20, 20]
    own = curve[curve["metric"] == "mIoU"].set_index("masks")
    assert own.loc[20, "gain"] == pytest.approx(own.loc[20, "value"] - own.loc[0, "value"], abs=1e-4)
    assert "From 5 to 20 masks" in enough(curve)
