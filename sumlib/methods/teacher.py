"""Models beside the one in training: an EMA teacher, for consistency on two views (AugSeg), and a second decoder.

How far the model and such a one agree is the certainty of SUM Discrepancy-Uncer (METHOD sections 3 and 7). The method needs neither; they
are what it is compared with.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.base.masks import mask_box, resized
from sumlib.metrics import mask_iou
from sumlib.model.sum import Sum, decoder_copy


class Teacher(nn.Module):
    """The exponential moving average of a student's weights; it learns nothing by itself."""

    def __init__(self, student: Sum, momentum: float):
        super().__init__()
        self.model = deepcopy(student).requires_grad_(False)
        self.momentum = momentum
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, student: Sum) -> None:
        """Move towards the student by 1 - m, with m = min(momentum, 1 - 1 / (steps + 1)), so that the first steps weigh alike."""
        momentum = min(self.momentum, 1 - 1 / (int(self.steps) + 1))
        for mine, other in zip(self.model.state_dict().values(), student.state_dict().values()):
            mine.lerp_(other, 1 - momentum) if mine.is_floating_point() else mine.copy_(other)
        self.steps += 1

    @torch.no_grad()
    def predict(self, pixels: Tensor, image: Tensor, xy: Tensor, codes: Tensor, bf16: bool = False) -> Tensor:
        """Masks (N, S, S) bool of N single prompts (codes of `Sum.decode_codes`) on images (B, 3, S, S): the best of three by predicted IoU."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            embedding = self.model.encode(pixels)
        logits, score = _three(self.model, embedding, image, xy, codes, pixels.shape[-1], bf16)
        return logits[torch.arange(len(xy)), score.argmax(1)] > 0

    def certainty(
        self,
        student: Sum,
        embedding: Tensor,
        pixels: Tensor,
        image: Tensor,
        target: Tensor,
        bf16: bool = False,
    ) -> Tensor:
        """`agreement` with the student on ``image``s of ``pixels`` (B, 3, S, S), of which ``embedding`` (B, C, h, w) is the student's."""
        with torch.no_grad(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            own = self.model.encode(pixels)
        return agreement((student, embedding), (self.model, own), image, target, bf16)


class SecondDecoder(nn.Module):
    """A prompt encoder and mask decoder that start as the model's and learn from prompts of their own, on the model's embeddings."""

    def __init__(self, model: Sum):
        super().__init__()
        self.model = decoder_copy(model).requires_grad_(True)

    def certainty(
        self, first: Sum, embedding: Tensor, pixels: Tensor, image: Tensor, target: Tensor, bf16: bool = False
    ) -> Tensor:
        """As `Teacher.certainty`, of the ``first`` model's decoder and this one."""
        return agreement((first, embedding), (self.model, embedding), image, target, bf16)


def agreement(
    first: tuple[Sum, Tensor], second: tuple[Sum, Tensor], image: Tensor, target: Tensor, bf16: bool = False
) -> Tensor:
    """Certainty (N, S, S) in [0, 1]: 1 - |difference of two models' probabilities| for the box of each target (N, S, S) bool.

    Each comes with its embeddings (B, C, h, w), which ``image`` (N,) indexes.
    """
    p, q = (box_probability(model, embedding, image, target, bf16) for model, embedding in (first, second))
    return 1 - (p - q).abs()


@torch.no_grad()
def box_probability(
    model: Sum, embedding: Tensor, image: Tensor, target: Tensor, bf16: bool = False
) -> Tensor:
    """Probabilities (N, S, S) for the box of each target (N, S, S) bool, of the output of three that agrees best with the target."""
    xy, codes = (
        mask_box(target).view(-1, 2, 2),
        torch.tensor([[2, 3]], device=target.device).expand(len(target), -1),
    )
    logits, _ = _three(model, embedding, image, xy, codes, target.shape[-1], bf16)
    iou = torch.stack([mask_iou(logits[:, k] > 0, target) for k in range(3)], 1)
    return logits[torch.arange(len(target)), iou.argmax(1)].sigmoid()


def _three(
    model: Sum, embedding: Tensor, image: Tensor, xy: Tensor, codes: Tensor, size: int, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Logits (N, 3, S, S) and predicted IoU (N, 3) of the outputs for a single prompt."""
    with torch.autocast(embedding.device.type, torch.bfloat16, enabled=bf16):
        low, score = model.decode_codes(embedding.index_select(0, image), xy, codes)
    return resized(low.float()[:, 1:], (size, size)), score.float()[:, 1:]


def strong_view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, S, S), normalised and padded, with other light, colours, sharpness and noise; padding stays zero.

    Intensity-based changes only, each with probability 1/2, as AugSeg draws a random number of them.
    """
    b, device = len(pixels), pixels.device
    draw = lambda *shape: torch.rand(*shape, generator=generator).to(device)
    padding = (pixels == 0).all(1, keepdim=True)
    does = draw(4, b, 1, 1, 1) < 0.5
    contrast, brightness = 0.5 + draw(b, 1, 1, 1), draw(b, 1, 1, 1) - 0.5
    view = torch.where(does[0], pixels * contrast + brightness, pixels)
    view = torch.where(does[1], view * (0.7 + 0.6 * draw(b, 3, 1, 1)) + 0.4 * (draw(b, 3, 1, 1) - 0.5), view)
    view = torch.where(does[2], F.avg_pool2d(F.pad(view, (1, 1, 1, 1), mode="replicate"), 3, stride=1), view)
    noise = torch.randn(pixels.shape, generator=generator).to(device)
    view = torch.where(does[3], view + 0.2 * draw(b, 1, 1, 1) * noise, view)
    return view.masked_fill(padding, 0.0)
