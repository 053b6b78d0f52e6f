"""Uncertainty of pseudo-labels: how far SAM's probability and the refined one are apart (METHOD.md section 3)."""

from torch import Tensor


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
    if logits.shape != refined_logits.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(refined_logits.shape)}"
        raise ValueError(f"logits and refined_logits differ in shape: {shapes}")
    return (logits.float().sigmoid() - refined_logits.float().sigmoid()).abs()


def certainty_map(logits: Tensor, refined_logits: Tensor) -> Tensor:
    """c = 1 - u, the weight the losses and the sampler take: shapes and errors as `uncertainty_map`, in [0, 1].

    >>> import torch
    >>> certainty_map(torch.tensor([0.0, 9e9]), torch.tensor([0.0, 0.0]))
    tensor([1.0000, 0.5000])
    """
    return 1 - uncertainty_map(logits, refined_logits)
