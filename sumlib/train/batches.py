"""What an iteration draws: images with some of their human masks or pseudo-labels (docs/method.md §5, 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sumlib.base.masks import framed, framed_masks
from sumlib.config.params import Config
from sumlib.config.runs import RunConfig
from sumlib.data.dataset import Dataset, Sample
from sumlib.data.registry import open_dataset
from sumlib.data.tasks import Task
from sumlib.model.sum import Sum
from sumlib.pseudo.store import AGAIN, Label, PseudoLabels, require_image_size


@dataclass(frozen=True)
class Batch:
    """B images and N prompts' targets in the model's input frame of S x S pixels."""

    pixels: Tensor
    """(B, 3, S, S) float32, normalised and padded."""
    image: Tensor
    """(N,) index of each target's image."""
    target: Tensor
    """(N, S, S) bool."""
    certainty: Tensor
    """(N, S, S) float32 in [0, 1]; one for human masks."""
    backup: Tensor
    """(N, 2) x, y of the point that made the pseudo-label; -1 for human masks."""
    task: Tensor
    """(N,) task ids."""

    @property
    def pseudo(self) -> Tensor:
        """(N,) bool: which masks are pseudo-labels."""
        return self.backup[:, 0] >= 0

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Source(Protocol):
    """Draws one image with ``prompts`` of its masks, with replacement if it has fewer.

    The pixels are on the model's device already, all else is on the CPU.
    """

    def draw(self, model: Sum, prompts: int, generator: torch.Generator) -> Batch: ...


def _choose(weights: Tensor, prompts: int, generator: torch.Generator) -> np.ndarray:
    """``prompts`` indices drawn with probability ``weights`` (M,): without repeats as far as they go."""
    count = len(weights)
    rounds = [torch.multinomial(weights, count, generator=generator) for _ in range(-(-prompts // count))]
    return torch.cat(rounds)[:prompts].numpy()


class Vanished:
    """Counts the masks of each image that are nothing at the model's size, and says so now and then.

    A mask of few pixels in a large image has none left in the model's frame. It is not drawn: trained as an
    empty one it would teach the model to answer a prompt with nothing.
    """

    def __init__(self):
        self.masks: dict[tuple[str, str], int] = {}
        self.lost: set[tuple[str, str]] = set()

    def survivors(self, sample: Sample, masks: np.ndarray, side: int) -> np.ndarray:
        """Which of the masks (M, H, W) of an image are still there in the frame of ``side`` pixels: their
        indices.
        """
        there = framed_masks(masks, side)[1]
        key = sample.dataset, sample.name
        if key not in self.masks:
            self.masks[key] = int((~there).sum())
            if (count := len(self.masks)) in (1, 10, 100, 1000, 10000):
                gone = sum(self.masks.values())
                print(
                    f"{gone} masks of {count} images so far are not drawn: "
                    f"nothing is left of them at {side} pixels"
                )
        if not there.any():
            self.lost.add(key)
        return np.flatnonzero(there)


class HumanSource:
    """Images of human-annotated sets, each equally likely (docs/method.md section 6)."""

    def __init__(self, datasets: Sequence[Dataset]):
        self.datasets = [d.good() for d in datasets]
        self.starts = np.cumsum([0, *(len(d) for d in self.datasets)])
        self.vanished = Vanished()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def draw(self, model: Sum, prompts: int, generator: torch.Generator) -> Batch:
        index = int(torch.randint(len(self), (), generator=generator))
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        sample = self.datasets[which][index - self.starts[which]]
        side = model.sam.image_encoder.img_size
        index = _choose(torch.ones(len(sample.masks)), prompts, generator)
        target, there = framed_masks(sample.masks[index], side)
        if not there.all():
            left = self.vanished.survivors(sample, sample.masks, side)
            if not len(left):
                _require_others(self.vanished, sample, len(self))
                return self.draw(model, prompts, generator)
            target = (
                framed(sample.masks[left[_choose(torch.ones(len(left)), prompts, generator)]], side) > 0.5
            )
        return Batch(
            model.preprocess(sample.image)[None],
            torch.zeros(prompts, dtype=torch.long),
            target,
            torch.ones(target.shape),
            torch.full((prompts, 2), -1.0),
            torch.full((prompts,), sample.task),
        )


class PseudoSource:
    """Unlabeled images with SAM's masks, or the refined ones, and their certainty (docs/method.md §2 and 3).

    A mask is drawn with probability 1 / area. SA-1B has a hundred masks an image, most of them small; where
    SAM finds only a handful, drawing them evenly would show the model mostly whole objects. Only what is
    drawn is decoded.
    """

    def __init__(self, images: Dataset, labels: PseudoLabels, kind: str):
        numbers = {name: i for i, name in enumerate(images.names)}
        self.images, self.labels, self.kind, self.vanished = images, labels, kind, Vanished()
        usable = [name for name in labels.images if kind == "sam" or labels.areas(name, kind).any()]
        if gone := [name for name in usable if name not in numbers]:
            raise ValueError(
                f"{labels.path}: image {gone[0]!r} is not in {images.name}; restore the image, or {AGAIN}"
            )
        self.numbers = [numbers[name] for name in usable]
        if len(usable) < len(labels.images):
            empty = len(labels.images) - len(usable)
            print(f"{images.name}: {empty} images are left out, all their refined masks are empty")

    def __len__(self) -> int:
        return len(self.numbers)

    def draw(self, model: Sum, prompts: int, generator: torch.Generator) -> Batch:
        sample = self.images[self.numbers[int(torch.randint(len(self), (), generator=generator))]]
        require_image_size(self.labels.size(sample.name), sample, self.labels.path)
        area = self.labels.areas(sample.name, self.kind)
        usable = np.flatnonzero(area)
        side = model.sam.image_encoder.img_size
        label = self.labels.read(sample.name, usable[_by_area(area[usable], prompts, generator)])
        target, there = framed_masks(self._masks(label), side)
        if not there.all():
            whole = self._masks(self.labels.read(sample.name, usable))
            left = usable[self.vanished.survivors(sample, whole, side)]
            if not len(left):
                _require_others(self.vanished, sample, len(self))
                return self.draw(model, prompts, generator)
            label = self.labels.read(sample.name, left[_by_area(area[left], prompts, generator)])
            target = framed(self._masks(label), side) > 0.5
        backup = model.to_input_frame(torch.from_numpy(label.points).float(), sample.image.shape[:2])
        return Batch(
            model.preprocess(sample.image)[None],
            torch.zeros(prompts, dtype=torch.long),
            target,
            framed(label.certainty, side),
            backup,
            torch.full((prompts,), Task.UNSPECIFIED),
        )

    def _masks(self, label: Label) -> np.ndarray:
        return label.masks if self.kind == "sam" else label.refined


def _by_area(area: np.ndarray, prompts: int, generator: torch.Generator) -> np.ndarray:
    """``prompts`` indices of masks with ``area`` (M,) pixels, drawn with probability 1 / area."""
    return _choose(torch.from_numpy(1 / area), prompts, generator)


def _require_others(vanished: Vanished, sample: Sample, images: int) -> None:
    """Raise ValueError if none of the images has a mask that can be drawn."""
    if len(vanished.lost) >= images:
        raise ValueError(
            f"{sample.dataset}: no mask of image {sample.name!r} is left at the model's size, "
            "nor of all others; use larger masks or a larger model"
        )


def collate(parts: Sequence[Batch]) -> Batch:
    """One batch of several images."""
    image = torch.cat([part.image + b for b, part in enumerate(parts)])
    return Batch(
        image=image,
        **{
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("pixels", "target", "certainty", "backup", "task")
        },
    )


def open_sources(
    config: Config, run: RunConfig, labels: Path | None
) -> tuple[HumanSource, PseudoSource | None]:
    """The data of a run; ``labels`` is the Parquet file of its pseudo-labels."""
    human = HumanSource([open_dataset(name, config.data_root) for name in config.data.human[run.budget]])
    if not run.unlabeled:
        return human, None
    images = open_dataset(config.data.unlabeled, config.data_root)
    return human, PseudoSource(
        images,
        PseudoLabels(labels, certainty="confidence" if run.uncertainty == "confidence" else "refinement"),
        run.labels,
    )
