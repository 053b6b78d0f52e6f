"""The gate of a foundation model: how well it segments entities and parts, click by click.

The masks have coarse outlines. The gate is passed before anything starts from the model.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from sumlib.data.dataset import Sample
from sumlib.micro.scene_store import Store
from sumlib.micro.world import coarse
from sumlib.model.prompts import FOREGROUND, Prompts
from sumlib.model.rounds import Round, best_of, interactive_rounds
from sumlib.model.sum import Sum
from sumlib.sampler import first_click, next_click

Example = tuple[np.ndarray, np.ndarray, str]
"""Image (H, W, 3) uint8, target masks (M, H, W) bool with M > 0, and their level."""


def normalise(model: Sum, images: Tensor) -> Tensor:
    """Images (B, H, W, 3) uint8 -> the encoder's input (B, 3, H, W)."""
    return model.sam.preprocess(images.permute(0, 3, 1, 2).float())


def stored_examples(store: Store, count: int) -> Iterator[Example]:
    """What `gate` measures on: the entities and the parts of the first ``count`` scenes of a store."""
    for index in range(count):
        rough, _, level = store.masks(index)
        for name, k in (("entity", 2), ("part", 3)):
            if (level == k).any():
                yield store.images[index], rough[level == k], name


def coarse_examples(datasets: Mapping[str, Iterable[Sample]]) -> Iterator[Example]:
    """The same of data sets, {level: samples}: their exact masks, made `coarse`."""
    for level, samples in datasets.items():
        for sample in samples:
            yield sample.image, np.stack([coarse(mask) for mask in sample.masks]), level


@torch.no_grad()
def gate(model: Sum, examples: Iterable[Example], rounds: int = 6) -> dict[str, list[float]]:
    """Mean IoU in points, {"entity": [round 1, ...], "part": ...}; round 1 is best of three."""
    model.eval()
    scores: dict[str, list] = {}
    for image, masks, level in examples:
        target = torch.from_numpy(masks).to(model.sam.device)
        image = torch.tensor(image, device=target.device)[None]
        embeddings = model.encode(normalise(model, image)).expand(len(target), -1, -1, -1)
        scores.setdefault(level, []).append(_ious(model, embeddings, target, rounds))
    model.train()
    return {level: (100 * torch.cat(rows).mean(0)).tolist() for level, rows in scores.items()}


def _ious(model: Sum, embeddings: Tensor, target: Tensor, rounds: int) -> Tensor:
    """IoU (M, rounds) of masks ``target`` (M, H, W) bool, H x W being the frame, after each round."""

    def decode(prompts: Prompts, shown: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
        # By `Sum.decode`, SAM's own arithmetic, which adds SAM's padding itself.
        return model.decode(embeddings, points=prompts.xy, labels=prompts.codes, mask_inputs=shown)

    def next_prompts(turn: Round) -> Prompts:
        return turn.prompts.add(*next_click(target, turn.mask))

    click, scores = first_click(target)[:, None], []
    first = Prompts(click.float(), torch.full(click.shape[:2], FOREGROUND, device=click.device))
    for turn in interactive_rounds(decode, first, rounds, next_prompts):
        masks = turn.logits > 0
        best, iou = best_of(masks, target)
        turn.take(best, masks[torch.arange(len(target), device=best.device), best])
        scores.append(iou.amax(1))
    return torch.stack(scores, 1)
