"""The picture panel: image and click, SAM's mask, its uncertainty map, SUM's mask, the truth."""

from pathlib import Path

import numpy as np
import torch

from sumlib.config import Config, RunConfig
from sumlib.data import open_dataset
from sumlib.evaluate import one_click, trained_tasks
from sumlib.model import Sum, load_sam, load_sum
from sumlib.refinement import before_and_after
from sumlib.refiner import load_refiner
from sumlib.sampler import first_click
from sumlib.uncertainty import uncertainty_map

SETS = ("DIS-VD", "BIG", "EntitySeg-0", "EntitySeg-2", "Bodypart", "EasyPortrait", "PACO")
"""Test sets shown: of each the largest mask of its second image, so that nothing is picked by its look."""


def panel_rows(config: Config, run: RunConfig, weights: Path, refiner: Path) -> list[dict]:
    """Rows for `sumlib.figures.panel`, one a set of `SETS`, after one click (oracle setting).

    ``weights`` holds the fine-tuned `Sum` of ``run``, ``refiner`` the mask-refinement module of its budget.
    """
    sam, model = Sum(load_sam(config.model.type, config.checkpoint)), load_sum(weights)
    refinement, _ = load_refiner(refiner, sam)
    rows = []
    for name in SETS:
        dataset = open_dataset(name, config.data_root)
        sample = dataset[1]
        target = torch.from_numpy(sample.masks[[sample.masks.sum((1, 2)).argmax()]])
        task = dataset.task if dataset.task in trained_tasks(config, run) else 0
        before = one_click(sam, sample, target, run=config.run("sam"), task=0)
        after = one_click(model, sample, target, run=run, task=task)
        rows.append({"name": name, "image": sample.image, "point": first_click(target)[0].numpy(), "sam": before[0].numpy(),
                     "uncertainty": uncertainty_map(*before_and_after(sam, refinement, sample, target))[0].numpy(), "sum": after[0].numpy(), "truth": target[0].numpy()})  # fmt: skip
    return rows
