"""The picture panel: image and click, SAM's mask, its uncertainty map, SUM's mask, the truth."""

from pathlib import Path

import numpy as np
import torch

from sumlib.config import Config, RunConfig
from sumlib.data import Sample, open_dataset
from sumlib.evaluate import one_click, trained_tasks
from sumlib.masks import mask_box
from sumlib.model import Sum, load_sam, load_sum
from sumlib.refiner import load_refiner, refine
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
                     "uncertainty": _uncertainty(sam, refinement, sample, target), "sum": after[0].numpy(), "truth": target[0].numpy()})  # fmt: skip
    return rows


@torch.no_grad()
def _uncertainty(sam: Sum, refiner: torch.nn.Module, sample: Sample, target: torch.Tensor) -> np.ndarray:
    """Uncertainty (H, W) of SAM's one-click mask that agrees best with the truth."""
    size = target.shape[1:]
    embedding = sam.encode(sam.preprocess(sample.image)[None])
    point = sam.to_input_frame(first_click(target).float(), size)
    low, _ = sam.decode(embedding, points=point[:, None], labels=torch.ones(1, 1, dtype=torch.long))
    full = sam.upscale(low[:, 1:], size)[0]  # (3, H, W)
    overlap = [(mask & target[0]).sum() / (mask | target[0]).sum().clamp(min=1) for mask in full > 0]
    best = int(torch.stack(overlap).argmax())
    box = sam.to_input_frame(mask_box(full[[best]] > 0).float(), size)
    refined = refine(refiner, embedding, low[:, 1 + best], box, point)
    return uncertainty_map(full[[best]], sam.upscale(refined[:, None], size)[0])[0].numpy()
