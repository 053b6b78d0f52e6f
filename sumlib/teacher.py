"""An EMA teacher of the model in training: consistency on two views (AugSeg) and the discrepancy as uncertainty (METHOD sections 3 and 7).

The method trains neither; these are what it is compared with.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.masks import jittered_boxes, mask_box
from sumlib.metrics import mask_iou
from sumlib.model import Sum
from sumlib.sampler import sample_point


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
        logits, score = _three(self.model, pixels, image, xy, codes, bf16)
        return logits[torch.arange(len(xy)), score.argmax(1)] > 0

    @torch.no_grad()
    def agreement(self, student: Sum, pixels: Tensor, image: Tensor, target: Tensor, bf16: bool = False) -> Tensor:
        """Certainty (N, S, S) in [0, 1]: 1 - |difference of the student's and the teacher's probability| for the box of each target (N, S, S) bool.

        Of the three outputs the one that agrees best with the target, chosen for each model.
        """
        xy, codes = mask_box(target).view(-1, 2, 2), torch.tensor([[2, 3]], device=target.device).expand(len(target), -1)
        maps = []
        for model in (student, self.model):
            logits, _ = _three(model, pixels, image, xy, codes, bf16)
            iou = torch.stack([mask_iou(logits[:, k] > 0, target) for k in range(3)], 1)
            maps.append(logits[torch.arange(len(target)), iou.argmax(1)].sigmoid())
        return 1 - (maps[0] - maps[1]).abs()


def _three(model: Sum, pixels: Tensor, image: Tensor, xy: Tensor, codes: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    """Logits (N, 3, S, S) and predicted IoU (N, 3) of the outputs for a single prompt."""
    size = pixels.shape[-1]
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
        low, score = model.decode_codes(model.encode(pixels).index_select(0, image), xy, codes)
    low = low.float()[:, 1:]
    return low if low.shape[-1] == size else F.interpolate(low, (size, size), mode="bilinear", align_corners=False), score.float()[:, 1:]


def consistency_prompts(kind: str, pixels: Tensor, image: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One prompt for each of N masks, (N, 2, 2) x, y and (N, 2) codes: "box" the mask's jittered box, "uniform-point" a point anywhere in
    the mask's image (B, 3, S, S), "mixed" a box or a point in the mask, 50/50. ``target`` (N, S, S) bool."""
    n = len(target)
    boxed = {"box": torch.ones(n, dtype=torch.bool), "uniform-point": torch.zeros(n, dtype=torch.bool)}.get(kind)
    boxed = (torch.rand(n, generator=generator) < 0.5 if boxed is None else boxed).to(target.device)
    inside = (pixels != 0).any(1)[image]  # padding is exactly zero
    point, _ = sample_point(inside if kind == "uniform-point" else target, generator=generator)
    point = point.float()
    xy = torch.where(boxed[:, None, None], jittered_boxes(target, generator).view(n, 2, 2), torch.stack([point, torch.zeros_like(point)], 1))
    return xy, torch.where(boxed[:, None], torch.tensor([[2, 3]], device=target.device), torch.tensor([[1, -1]], device=target.device))


def strong_view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, S, S), normalised and padded, with other light, colours, sharpness and noise; padding stays zero.

    Intensity-based changes only, each with probability 1/2, as AugSeg draws a random number of them.
    """
    b, device = len(pixels), pixels.device
    draw = lambda *shape: torch.rand(*shape, generator=generator).to(device)  # noqa: E731
    padding = (pixels == 0).all(1, keepdim=True)
    does = draw(4, b, 1, 1, 1) < 0.5
    contrast, brightness = 0.5 + draw(b, 1, 1, 1), draw(b, 1, 1, 1) - 0.5
    view = torch.where(does[0], pixels * contrast + brightness, pixels)
    view = torch.where(does[1], view * (0.7 + 0.6 * draw(b, 3, 1, 1)) + 0.4 * (draw(b, 3, 1, 1) - 0.5), view)
    view = torch.where(does[2], F.avg_pool2d(F.pad(view, (1, 1, 1, 1), mode="replicate"), 3, stride=1), view)
    noise = torch.randn(pixels.shape, generator=generator).to(device)
    view = torch.where(does[3], view + 0.2 * draw(b, 1, 1, 1) * noise, view)
    return view.masked_fill(padding, 0.0)
