"""Uncertainty maps: hand-computed values."""

import pytest
import torch

from sumlib.uncertainty import certainty_map, uncertainty_map


def test_is_the_difference_of_probabilities():
    logits = torch.tensor([[[0.25, 0.9], [0.5, 0.1]]]).logit()
    refined = torch.tensor([[[0.75, 0.9], [0.4, 1.0]]]).logit()
    torch.testing.assert_close(uncertainty_map(logits, refined), torch.tensor([[[0.5, 0.0], [0.1, 0.9]]]))


def test_is_symmetric_and_in_the_unit_interval():
    generator = torch.Generator().manual_seed(0)
    logits, refined = torch.randn(2, 3, 16, 16, generator=generator).mul(30).unbind()
    u = uncertainty_map(logits, refined)
    assert u.shape == (3, 16, 16) and u.min() >= 0 and u.max() <= 1
    assert torch.equal(u, uncertainty_map(refined, logits)) and torch.equal(
        certainty_map(logits, refined), 1 - u
    )
    assert not uncertainty_map(logits, logits).any()


def test_bf16_is_computed_in_float32():
    logits, refined = (
        torch.tensor([1.0]).bfloat16(),
        torch.tensor([1.0078125]).bfloat16(),
    )  # neighbours in bf16
    u = uncertainty_map(logits, refined)
    assert u.dtype == torch.float32 and 0.0015 < u.item() < 0.0016


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        uncertainty_map(torch.zeros(2, 4, 4), torch.zeros(1, 4, 4))
