"""Which parameters move and how fast, by hand on a small SAM."""

from dataclasses import replace

import pytest
import torch
from small import small_sum
from torch import nn

from sumlib.config.params import load_config
from sumlib.train.tuning import finish, parameter_groups, prepare

CONFIG = replace(
    load_config("smoke").finetune,
    lr=1.0,
    encoder_lr_scale=0.5,
    layer_decay=0.8,
    task_prompt_lr=3.0,
    weight_decay=0.1,
)


@pytest.fixture
def model():
    return small_sum()


def settings(model, groups) -> dict[str, tuple[float, float]]:
    """Parameter name -> (learning rate, weight decay)."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        (names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]
    ]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_layer_decay_by_hand(model):
    found = settings(model, parameter_groups(model, CONFIG, task_prompt=True))
    assert (
        found.keys()
        == {name for name, p in model.named_parameters() if p.requires_grad}
        == dict(model.named_parameters()).keys()
    )
    rates = {
        "patch_embed": 0.5 * 0.8**3,
        "pos_embed": 0.5 * 0.8**3,
        "blocks.0.": 0.5 * 0.8**2,
        "blocks.1.": 0.5 * 0.8,
        "neck": 0.5,
    }
    for name, (lr, _) in found.items():
        place = name.removeprefix("sam.image_encoder.")
        expected = next(
            (rate for start, rate in rates.items() if place.startswith(start)),
            3.0 if name.startswith("task_prompt") else 1.0,
        )
        assert lr == pytest.approx(expected), name


def test_biases_norms_and_embeddings_are_not_decayed(model):
    found = settings(model, parameter_groups(model, CONFIG, task_prompt=True))
    free = {
        f"{path}.{name}"
        for path, m in model.named_modules()
        if isinstance(m, (nn.LayerNorm, nn.Embedding))
        for name, _ in m.named_parameters()
    }
    free |= {name for name, p in model.named_parameters() if p.dim() == 1}
    assert free == {name for name, (_, decay) in found.items() if decay == 0}
    assert {decay for _, decay in found.values()} == {0, 0.1}
    assert found["sam.image_encoder.blocks.0.attn.qkv.weight"][1] == 0.1
    assert found["sam.mask_decoder.iou_token.weight"][1] == 0 and found["task_prompt.weight"][1] == 0


def test_what_is_left_out_is_frozen(model):
    found = settings(model, parameter_groups(model, replace(CONFIG, encoder_lr_scale=0.0), task_prompt=False))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name in dict(model.named_parameters())
        if name.startswith(("sam.image_encoder.", "task_prompt."))
    }
    assert not frozen & found.keys() and frozen | found.keys() == dict(model.named_parameters()).keys()


def test_a_later_choice_thaws_again(model):
    parameter_groups(model, replace(CONFIG, encoder_lr_scale=0.0), task_prompt=False)
    parameter_groups(model, CONFIG, task_prompt=True)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("tuning", "added"),
    [
        ("decoder", set()),
        ("adapter", {"down.weight", "down.bias", "up.weight", "up.bias"}),
        ("lora", {"qkv.down", "qkv.up"}),
    ],
)
def test_lightweight_schemes_move_the_head_and_what_they_add(model, tuning, added):
    own = set(dict(model.named_parameters()))
    config = replace(CONFIG, light_lr=7.0, adapter_width=4, lora_rank=2)
    prepare(model, tuning, config, torch.Generator().manual_seed(0))
    found = settings(model, parameter_groups(model, config, task_prompt=True, tuning=tuning))
    in_encoder = {name: lr for name, (lr, _) in found.items() if name.startswith("sam.image_encoder.")}
    assert {".".join(name.split(".")[-2:]) for name in in_encoder} == added and set(in_encoder.values()) <= {
        7.0
    }
    assert {
        name for name in own if name.startswith(("sam.prompt_encoder.", "sam.mask_decoder.", "task_prompt."))
    } == found.keys() - in_encoder.keys()
    finish(model)
    assert own <= set(dict(model.named_parameters())) and (
        tuning == "adapter" or own == set(dict(model.named_parameters()))
    )
