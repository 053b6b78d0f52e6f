"""Training pairs of the refiner: one of SAM's masks, and the human mask it should be (docs/method.md §3).

"Frame" is the model's input frame of S x S pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from sumlib.base.masks import framed, mask_box, resized
from sumlib.config.params import RefineConfig
from sumlib.data.dataset import Sample
from sumlib.model.prompts import Prompts
from sumlib.model.rounds import best_of
from sumlib.model.sum import Sum
from sumlib.sampler import sample_point


@dataclass(frozen=True)
class Pairs:
    """N of SAM's masks, each with the human mask it should have been."""

    image: Tensor
    """(N,) index of the image."""
    logits: Tensor
    """(N, 4h, 4w) SAM's low-resolution logits."""
    boxes: Tensor
    """(N, 4) XYXY boxes of SAM's masks in the frame."""
    points: Tensor
    """(N, 2) x, y of the prompts in the frame."""
    target: Tensor
    """(N, S, S) bool, human masks."""
    masks: Tensor
    """(N, S, S) bool, SAM's masks."""

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows) -> "Pairs":
        return Pairs(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@torch.no_grad()
def make_pairs(
    model: Sum,
    embeddings: Tensor,
    image: Tensor,
    target: Tensor,
    config: RefineConfig,
    *,
    generator: torch.Generator,
    inside: Tensor | None = None,
) -> Pairs:
    """SAM's best mask for one random point of each human mask, where it is good enough to be a pseudo-label.

    ``embeddings`` (B, C, h, w), ``image`` (N,) index into them, ``target`` (N, S, S) bool, not empty,
    ``inside`` (N, S, S) bool the frame without padding. Of the three outputs the one that agrees best with
    the human mask is taken; the pair is kept if their IoU is at least ``config.min_iou`` and the mask passes
    the predicted-IoU and stability filters.
    """
    size, rows = target.shape[-1], torch.arange(len(target), device=target.device)
    points, _ = sample_point(target, generator=generator)
    prompts = Prompts.from_points(points[:, None])
    low, score = model.decode_codes(embeddings[image], prompts.xy, prompts.codes)
    low, score = low[:, 1:].float(), score[:, 1:].float()  # the three outputs
    full = resized(low, (size, size))
    if inside is not None:
        full = full.masked_fill(~inside[:, None], -math.inf)
    best, iou = best_of(full > 0, target)
    stability = calculate_stability_score(full[rows, best], 0.0, config.stability_offset)
    masks = full[rows, best] > 0
    keep = (iou[rows, best] >= config.min_iou) & (score[rows, best] >= config.pred_iou_thresh)
    keep &= (stability >= config.stability_thresh) & masks.flatten(1).any(1)
    return Pairs(image, low[rows, best], mask_box(masks), points.float(), target, masks)[keep]


class HumanImages:
    """Human-annotated images by number; what fits into ``memory`` bytes is encoded once, the rest anew.

    ``make`` makes the training pairs, with the arguments of `make_pairs`. ``read`` lists which images were
    encoded together and kept: the last bits of an embedding depend on that. To resume to the same bits,
    encode the same images together again (`get` of each).
    """

    def __init__(
        self,
        model: Sum,
        samples: Sequence[Sample],
        memory: int = 2**30,
        make: Callable[..., Pairs] = make_pairs,
    ):
        self.model, self.samples, self.left, self.kept, self.make = model, samples, memory, {}, make
        self.read: list[list[int]] = []

    @torch.no_grad()
    def get(self, numbers: Sequence[int]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Embeddings (B, C, h, w), masks (M, S, S) of each image, frame without padding (B, S, S); bool."""
        missing = [number for number in dict.fromkeys(numbers) if number not in self.kept]
        fresh, model, kept = {}, self.model, len(self.kept)
        if missing:
            samples = [self.samples[number] for number in missing]
            embeddings = model.encode(
                torch.stack([model.preprocess(sample.image) for sample in samples])
            ).float()
            for number, sample, embedding in zip(missing, samples, embeddings):
                fresh[number] = (embedding.clone(), *self._framed(sample))
        for number, item in fresh.items():
            cost = sum(part.numel() * part.element_size() for part in item)
            if cost <= self.left:
                self.kept[number], self.left = item, self.left - cost
        if len(self.kept) > kept:
            self.read.append(missing)
        items = [self.kept.get(number) or fresh[number] for number in numbers]
        return (
            torch.stack([item[0] for item in items]),
            [item[1] for item in items],
            torch.stack([item[2] for item in items]),
        )

    def _framed(self, sample: Sample) -> tuple[Tensor, Tensor]:
        side = self.model.sam.image_encoder.img_size
        masks = framed(sample.masks, side) > 0.5
        inside = framed(np.ones_like(sample.masks[:1]), side)[0] > 0.5
        device = self.model.sam.device
        return masks[masks.flatten(1).any(1)].to(device), inside.to(device)

    def pairs(
        self, numbers: Sequence[int], per_image: int, config: RefineConfig, generator: torch.Generator
    ) -> tuple[Tensor, Pairs]:
        """Embeddings and pairs of ``per_image`` random masks of each image, no repeats as far as they go."""
        embeddings, masks, inside = self.get(numbers)
        image, target = [], []
        for b, own in enumerate(masks):
            times = -(-per_image // len(own)) if len(own) else 0
            orders = [torch.randperm(len(own), generator=generator) for _ in range(times)]
            rows = torch.cat([torch.zeros(0, dtype=torch.long), *orders])[:per_image].to(own.device)
            image.append(torch.full((len(rows),), b, device=own.device))
            target.append(own[rows])
        image = torch.cat(image)
        return embeddings, self.make(
            self.model,
            embeddings,
            image,
            torch.cat(target),
            config,
            generator=generator,
            inside=inside[image],
        )

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """The images (B, 3, S, S) as the encoder takes them."""
        return torch.stack([self.model.preprocess(self.samples[number].image) for number in numbers])
