"""An EMA teacher: a slow copy of the model in training, for AugSeg and SUM Discrepancy-Uncer."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from sumlib.base.masks import resized
from sumlib.model.prompts import Prompts
from sumlib.model.sum import Sum


class Teacher(nn.Module):
    """The exponential moving average of a student's weights; it learns nothing by itself."""

    def __init__(self, student: Sum, momentum: float):
        super().__init__()
        self.model = deepcopy(student).requires_grad_(False)
        self.momentum = momentum
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, student: Sum) -> None:
        """Move towards the student by 1 - m.

        m = min(momentum, 1 - 1 / (steps + 1)), so that the first steps weigh alike.
        """
        momentum = min(self.momentum, 1 - 1 / (int(self.steps) + 1))
        for mine, other in zip(self.model.state_dict().values(), student.state_dict().values()):
            mine.lerp_(other, 1 - momentum) if mine.is_floating_point() else mine.copy_(other)
        self.steps += 1

    @torch.no_grad()
    def predict(self, pixels: Tensor, image: Tensor, prompts: Prompts, bf16: bool = False) -> Tensor:
        """Masks (N, S, S) bool of N single prompts: the best of three by predicted IoU.

        ``pixels`` (B, 3, S, S), ``image`` (N,) indexes them.
        """
        embedding = self.encode(pixels, bf16)
        logits, score = three_masks(self.model, embedding, image, prompts, pixels.shape[-1], bf16)
        return logits[torch.arange(len(prompts), device=score.device), score.argmax(1)] > 0

    @torch.no_grad()
    def encode(self, pixels: Tensor, bf16: bool = False) -> Tensor:
        """Images (B, 3, S, S) -> its own embeddings (B, C, h, w)."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            return self.model.encode(pixels)


def three_masks(
    model: Sum, embedding: Tensor, image: Tensor, prompts: Prompts, size: int, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Logits (N, 3, S, S) and predicted IoU (N, 3) of the multi-mask outputs for N single prompts."""
    with torch.autocast(embedding.device.type, torch.bfloat16, enabled=bf16):
        low, score = model.decode_codes(embedding.index_select(0, image), prompts.xy, prompts.codes)
    return resized(low.float()[:, 1:], (size, size)), score.float()[:, 1:]
