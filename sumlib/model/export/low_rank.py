"""A change of a weight matrix as two thin factors, where it has low rank, as LoRA's changes have."""

import torch
from torch import Tensor

EXACT = 1e-6
"""Largest error of a restored weight, relative to the matrix's largest weight."""


def factors(before: Tensor, after: Tensor, most: int = 64) -> tuple[Tensor, Tensor] | None:
    """``up`` (m, r) and ``down`` (r, n), float32, with ``before + up @ down`` equal to ``after`` to `EXACT`.

    The rank r is found: singular values of the change count where they stand out from the rounding of the
    weights. None if it is above ``most``, if the factors were no smaller than the matrix, or if they miss
    `EXACT`.

    >>> before, up, down = torch.randn(3, 20, 20).split(1)
    >>> after = before[0] + up[0][:, :2] @ down[0][:2]
    >>> [tuple(factor.shape) for factor in factors(before[0], after)]
    [(20, 2), (2, 20)]
    >>> factors(before[0], down[0]) is None
    True
    """
    change = after.double() - before.double()
    u, sizes, v = _svd(change, most)
    noise = torch.finfo(torch.float32).eps * (after.double().norm() + change.norm())
    rank = int((sizes > noise).sum())
    if rank > most or rank * sum(after.shape) >= after.numel():
        return None
    root = sizes[:rank].sqrt()
    up, down = (u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float()
    if error(before, after, up, down) > EXACT:
        return None
    return up.contiguous(), down.contiguous()


def restored(before: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``before + up @ down``, rounded once to float32."""
    return (before.double() + up.double() @ down.double()).float()


def error(before: Tensor, after: Tensor, up: Tensor, down: Tensor) -> float:
    """Largest deviation of the restored matrix, relative to its largest weight."""
    return float((restored(before, up, down) - after).abs().max() / after.abs().max().clamp(min=1e-30))


def _svd(matrix: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``most`` + 8 singular vectors and values (m, k), (k,), (k, n): exact if the rank is lower.

    By projection on a random subspace, which for the matrices of a ViT-H takes milliseconds, not seconds.
    """
    width = min(*matrix.shape, most + 8)
    probe = torch.randn(
        matrix.shape[1], width, generator=torch.Generator().manual_seed(0), dtype=torch.double
    )
    basis = torch.linalg.qr(matrix @ probe).Q
    basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q  # once more: sharper where values fall slowly
    u, sizes, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, sizes, v
