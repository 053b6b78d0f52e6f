"""Uncertainty-aware mask losses (docs/method.md section 4; equations 1 and 2 of the paper).

Without `certainty` these are SAM's plain focal and dice losses, and a certainty of one everywhere gives
exactly the same value. Everything is computed in float32 at least, so bf16 or half logits lose nothing
further. Certainty is a constant weight: no gradient flows into it.

Logits beyond +-1e30 count as +-1e30, which keeps sums finite and changes no other value: an infinite logit
gives a huge loss, and none where its certainty is 0. NaN stays NaN, so that whoever trains sees it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_LOGIT = 1e30


def focal_loss(
    logits: Tensor,
    target: Tensor,
    certainty: Tensor | None = None,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Focal loss, each pixel weighted by its certainty, mean over all pixels (eq. 1).

    Args:
        logits: (N, H, W) floating point.
        target: (N, H, W) bool, or float in [0, 1].
        certainty: (N, H, W) in [0, 1], or None for the plain loss.
        alpha: weight of the foreground; the background has 1 - alpha.
        gamma: focusing exponent, 1 or more (below 1 the gradient is infinite at a perfect prediction).

    Returns:
        (N,) float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes differ.

    >>> target = torch.tensor([[[True, False]]])
    >>> focal_loss(torch.zeros(1, 1, 2), target, gamma=2.0, alpha=0.5)  # 0.5 * 0.25 * log 2
    tensor([0.0866])
    """
    logits, target, certainty = _prepare(logits, target, certainty)
    probability = logits.sigmoid()
    miss = (
        probability + target - 2 * probability * target
    )  # 1 - p_t, the probability given to the wrong class
    balance = alpha * target + (1 - alpha) * (1 - target)
    loss = (
        balance * miss**gamma * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    )  # (N, H, W)
    if certainty is not None:
        loss = certainty * loss
    return loss.mean(dim=(1, 2))


def dice_loss(
    logits: Tensor,
    target: Tensor,
    certainty: Tensor | None = None,
    *,
    threshold: float = 0.6,
    smooth: float = 1.0,
) -> Tensor:
    """Dice loss over the pixels whose certainty is above the threshold (eq. 2).

    Args:
        logits: (N, H, W) floating point.
        target: (N, H, W) bool, or float in [0, 1].
        certainty: (N, H, W) in [0, 1], or None to count every pixel.
        threshold: theta, a pixel counts when its certainty is strictly above it; no effect without certainty.
        smooth: epsilon, added to numerator and denominator. A mask without certain pixels has loss 0.

    Returns:
        (N,) float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes differ.

    >>> dice_loss(torch.zeros(1, 1, 2), torch.tensor([[[True, False]]]))  # 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    tensor([0.3333])
    """
    logits, target, certainty = _prepare(logits, target, certainty)
    probability = logits.sigmoid()
    if certainty is not None:
        certain = (certainty > threshold).to(logits.dtype)
        probability, target = probability * certain, target * certain
    overlap = (probability * target).sum(dim=(1, 2))  # (N,) I of eq. 2
    total = (probability + target).sum(dim=(1, 2))  # (N,) S of eq. 2
    return 1 - (2 * overlap + smooth) / (total + smooth)


def _prepare(
    logits: Tensor, target: Tensor, certainty: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check the shapes and bring everything to the precision of the computation."""
    for name, tensor in (("logits", logits), ("target", target), ("certainty", certainty)):
        if tensor is not None and (tensor.ndim != 3 or tensor.shape != logits.shape):
            raise ValueError(
                f"{name} must be (N, H, W) like logits {tuple(logits.shape)}, got {tuple(tensor.shape)}"
            )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weight = None if certainty is None else certainty.detach().to(dtype)
    logits = logits.to(dtype)
    if (
        logits.numel() and not logits.detach().abs().max() <= LARGEST_LOGIT
    ):  # a clamped copy may be summed in another order
        logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    return logits, target.to(dtype), weight
