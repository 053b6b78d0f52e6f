"""Uncertainty of pseudo-labels: how far SAM's and the refined probability are apart (docs/method.md §3)."""

from typing import TypeVar

import numpy as np
from torch import Tensor

Values = TypeVar("Values", Tensor, np.ndarray)


def certainty_between(p: Values, q: Values, top: float = 1.0) -> Values:
    """c = 1 - |p - q| / top of two probabilities, given as numbers from 0 to ``top`` (255 for 8-bit maps).

    >>> certainty_between(np.array([0.0, 255.0]), np.array([51.0, 0.0]), 255)
    array([0.8, 0. ])
    """
    return 1 - abs(p - q) / top


def uncertainty_map(logits: Tensor, refined_logits: Tensor) -> Tensor:
    """u = |sigmoid(s) - sigmoid(r)| for SAM's logits s and the refinement module's r.

    Args:
        logits: (N, H, W), or any other shape, floating point.
        refined_logits: same shape.

    Returns:
        same shape, float32, in [0, 1].

    Raises:
        ValueError: shapes differ.

    >>> import torch
    >>> uncertainty_map(torch.tensor([0.0, 9e9, -9e9]), torch.tensor([0.0, 0.0, 9e9]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    p, q = _probabilities(logits, refined_logits)
    return (p - q).abs()


def certainty_map(logits: Tensor, refined_logits: Tensor) -> Tensor:
    """c = 1 - u, the weight that losses and sampler take: shapes and errors as `uncertainty_map`, in [0, 1].

    >>> import torch
    >>> certainty_map(torch.tensor([0.0, 9e9]), torch.tensor([0.0, 0.0]))
    tensor([1.0000, 0.5000])
    """
    return certainty_between(*_probabilities(logits, refined_logits))


def _probabilities(logits: Tensor, refined_logits: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape != refined_logits.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(refined_logits.shape)}"
        raise ValueError(f"logits and refined_logits differ in shape: {shapes}")
    return logits.float().sigmoid(), refined_logits.float().sigmoid()
