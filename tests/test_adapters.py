"""Adapters and low-rank updates: nothing at first, the right thing later, and nothing else is touched."""

from copy import deepcopy

import pytest
import torch
from small import small_sum
from torch.nn import functional as F

from sumlib.model.adapters import (
    Adapter,
    LoraQKV,
    adapter_width,
    add_adapters,
    add_lora,
    light_parameters,
    merge_lora,
)


@pytest.fixture
def encoder():
    return small_sum().sam.image_encoder


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=rng(9))


def shake(encoder, size: float = 0.1) -> None:
    """Weights as after a training."""
    with torch.no_grad():
        for k, parameter in enumerate(light_parameters(encoder)):
            parameter.add_(size * torch.randn(parameter.shape, generator=rng(k)))


@pytest.mark.parametrize("add", [add_adapters, add_lora])
@torch.no_grad()
def test_nothing_changes_at_first_and_something_later(encoder, add):
    before, names = encoder(image()), set(encoder.state_dict())
    add(encoder, 4, rng())
    assert torch.equal(encoder(image()), before)
    shake(encoder)
    assert not torch.allclose(encoder(image()), before, atol=1e-3)
    if add is add_adapters:
        assert names <= set(encoder.state_dict())  # the encoder's own weights keep their names


@torch.no_grad()
def test_adapters_lie_behind_attention_and_beside_the_mlp(encoder):
    block, x = encoder.blocks[0], torch.randn(1, 8, 8, 32, generator=rng())
    attention, mlp = block.attn(x), block.mlp(x)
    add_adapters(encoder, 4, rng())
    shake(encoder)
    bottleneck = lambda a, y: F.linear(
        F.gelu(F.linear(y, a.down.weight, a.down.bias)), a.up.weight, a.up.bias
    )
    assert torch.allclose(block.attn(x), attention + bottleneck(block.attn.adapter, attention), atol=1e-6)
    assert torch.allclose(block.mlp(x), mlp + 0.5 * bottleneck(block.mlp.adapter, x), atol=1e-6)
    assert adapter_width(encoder) == 4 and adapter_width(small_sum().sam.image_encoder) == 0


@torch.no_grad()
def test_a_copy_uses_its_own_adapters(encoder):
    add_adapters(encoder, 4, rng())
    twin = deepcopy(encoder)
    before = encoder(image())
    shake(twin)
    assert torch.equal(encoder(image()), before) and not torch.equal(twin(image()), before)


@torch.no_grad()
def test_merged_updates_give_the_same_bits_and_an_ordinary_encoder(encoder):
    names, plain = (
        set(encoder.state_dict()),
        {name: value.clone() for name, value in encoder.state_dict().items()},
    )
    add_lora(encoder, 2, rng())
    shake(encoder)
    expected = encoder(image())
    merge_lora(encoder)
    assert torch.equal(encoder(image()), expected) and set(encoder.state_dict()) == names
    for name, value in encoder.state_dict().items():
        if name.endswith("attn.qkv.weight"):
            query, key, value_part = (value - plain[name]).chunk(3)
            assert (
                not key.any()
                and query.any()
                and torch.linalg.matrix_rank(value_part) == torch.linalg.matrix_rank(query) == 2
            )
        else:
            assert torch.equal(value, plain[name]), name
    merge_lora(encoder)  # nothing left to merge
    assert torch.equal(encoder(image()), expected)


def test_the_generator_decides_the_start():
    first, same, other = (Adapter(8, 4, rng(seed)).down.weight for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    lora = LoraQKV(torch.nn.Linear(8, 24), 2, rng())
    assert lora.down.any() and not lora.up.any()


def test_light_parameters_are_all_that_was_added(encoder):
    known = {id(p) for p in encoder.parameters()}
    add_adapters(encoder, 4, rng())
    add_lora(encoder, 2, rng())
    found = light_parameters(encoder)
    assert {id(p) for p in found} == {id(p) for p in encoder.parameters()} - known and len(found) == 2 * (
        4 + 4 + 2
    )
