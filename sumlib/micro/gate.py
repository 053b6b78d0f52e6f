"""The gate of a foundation model: how well it segments entities and parts at coarse outlines, click by click, before anything starts from it."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from sumlib.data.dataset import Sample
from sumlib.metrics import mask_iou
from sumlib.micro.scene_store import Store
from sumlib.micro.world import coarse
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
    """Mean IoU (points) over the masks of each level per round, best of three at the first: {"entity": [round 1, ...], ...}."""
    model.eval()
    scores: dict[str, list] = {}
    for image, masks, level in examples:
        target = torch.from_numpy(masks)
        each = model.encode(normalise(model, torch.tensor(image)[None])).expand(len(target), -1, -1, -1)
        points, labels = first_click(target)[:, None], torch.ones(len(target), 1, dtype=torch.long)
        previous, rows = None, []
        for step in range(rounds):
            logits, _ = model.decode(each, points=points, labels=labels, mask_inputs=previous)
            choices = logits[:, 1:] if step == 0 else logits[:, :1]
            iou = torch.stack([mask_iou(choices[:, c] > 0, target) for c in range(choices.shape[1])], 1)
            best = iou.argmax(1)
            previous = choices[torch.arange(len(target)), best][:, None]
            rows.append(iou.amax(1))
            new, label = next_click(target, previous[:, 0] > 0)
            points, labels = torch.cat([points, new[:, None]], 1), torch.cat([labels, label[:, None]], 1)
        scores.setdefault(level, []).append(torch.stack(rows, 1))
    model.train()
    return {level: (100 * torch.cat(rows).mean(0)).tolist() for level, rows in scores.items()}
