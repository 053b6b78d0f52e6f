"""The faster attention: SAM's numbers and gradients up to rounding, SAM's own modules."""

import pytest
import torch
from small import small_sum

from sumlib.attention import FewTokens, with_few_tokens


@pytest.fixture(scope="module")
def transformer():
    return small_sum(1).sam.mask_decoder.transformer


@pytest.mark.parametrize("kind", ["tokens look", "pixels look"])
def test_attention_with_few_tokens_is_sams_attention(transformer, kind):
    layer, generator = transformer.layers[0], torch.Generator().manual_seed(0)
    tokens, pixels = torch.randn(3, 7, 32, generator=generator), torch.randn(3, 50, 32, generator=generator)
    if kind == "tokens look":
        attention, q, k = layer.cross_attn_token_to_image, tokens, pixels
    else:
        attention, q, k = layer.cross_attn_image_to_token, pixels, tokens
    with torch.no_grad():
        assert torch.allclose(FewTokens(attention)(q, k, 2 * k), attention(q, k, 2 * k), atol=1e-5)


def test_the_faster_transformer_has_the_same_outputs_and_gradients(transformer):
    generator = torch.Generator().manual_seed(1)
    image, position = torch.randn(2, 32, 8, 8, generator=generator), torch.randn(2, 32, 8, 8, generator=generator)
    tokens = torch.randn(2, 6, 32, generator=generator)
    found = []
    for network in (transformer, with_few_tokens(transformer)):
        transformer.zero_grad()
        outputs = network(image, position, tokens)
        sum((out**2).sum() for out in outputs).backward()
        found.append([*outputs, *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in transformer.parameters())])
    for a, b in zip(*found, strict=True):  # a bias of keys moves no softmax: its gradient is zero, or not even computed
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, a.abs().max().item()))


def test_nothing_is_copied_and_the_original_is_untouched(transformer):
    before = [type(module) for module in transformer.modules()]
    fast = with_few_tokens(transformer)
    assert {id(p) for p in fast.parameters()} == {id(p) for p in transformer.parameters()}
    assert [type(module) for module in transformer.modules()] == before
