"""Models and data for the tests of own projects: small SAMs, tuned ones, and micro scenes as data sets."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from small import entity_samples, small_sum

from sumlib.config.params import PseudoLabelConfig, load_config
from sumlib.data.dataset import Dataset, Entry, Sample
from sumlib.data.tasks import Task
from sumlib.model.sum import Sum

SURE: PseudoLabelConfig = replace(
    load_config("smoke").pseudo_label, points_per_side=5, pred_iou_thresh=0.0, stability_thresh=0.0
)
"""Thresholds that masks of random weights pass."""


def foundation() -> Sum:
    """A SAM of random weights."""
    return small_sum(1)


def pushed(model: Sum, by: float, seed: int = 0) -> Sum:
    """A copy whose weights are pushed away at random, by their size, with a vector for one task."""
    copy, draw = deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in copy.named_parameters():
            noise = torch.randn(value.shape, generator=draw)
            if name == "task_prompt.weight":
                value[Task.ENTITY] = 0.02 * noise[Task.ENTITY]
            else:
                value += by * value.std(correction=0).nan_to_num(0) * noise
    return copy


def dataset_of(samples: list[Sample], name: str = "leaves", task: Task = Task.ENTITY) -> Dataset:
    """Samples in memory as a data set."""
    entries = [Entry(s.name, Path(f"{s.name}.png"), partial(_loaded, s)) for s in samples]
    return Dataset(name, task, entries)


def _loaded(sample: Sample):
    return sample.image, sample.masks, {}


def held_out(count: int = 6) -> Dataset:
    """Micro scenes with their entities."""
    return dataset_of(entity_samples(count))


def unlabeled(count: int = 5) -> Dataset:
    """Micro scenes without masks."""
    bare = [replace(s, name=f"photo {k}", masks=s.masks[:0]) for k, s in enumerate(entity_samples(count))]
    return dataset_of(bare, "unlabeled", Task.UNSPECIFIED)
