"""Picture panels: SAM, its uncertainty and SUM; what the task prompt asks for; models side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from sumlib.config.params import Config
from sumlib.config.runs import RunConfig
from sumlib.data.dataset import Dataset, Sample
from sumlib.data.registry import open_dataset
from sumlib.evaluate import interact, one_click, trained_tasks
from sumlib.figures.pictures import BLUE, GREEN, ORANGE, overlay
from sumlib.metrics import mask_iou
from sumlib.model.checkpoint import load_sum
from sumlib.model.foundation import load_foundation
from sumlib.model.sum import Sum
from sumlib.refiner.measure import before_and_after
from sumlib.refiner.module import load_refiner
from sumlib.report.text import shown
from sumlib.sampler import first_click
from sumlib.uncertainty import uncertainty_map

SETS = ("DIS-VD", "BIG", "EntitySeg-0", "EntitySeg-2", "Bodypart", "EasyPortrait", "PACO")
"""Test sets shown: of each the largest mask of its second image, so that nothing is picked by its look."""


def panel_rows(config: Config, run: RunConfig, weights: Path, refiner: Path) -> list[dict]:
    """Rows for `sumlib.figures.panels.sum_panel`, one a set of `SETS`, after one click (oracle setting).

    ``weights`` holds the fine-tuned `Sum` of ``run``, ``refiner`` the mask-refinement module of its budget.
    """
    sam, model = load_foundation(config), load_sum(weights)
    refinement, _ = load_refiner(refiner, sam)
    rows = []
    for name in SETS:
        dataset = open_dataset(name, config.data_root)
        sample = dataset[1]
        target = torch.from_numpy(sample.masks[[sample.masks.sum((1, 2)).argmax()]])
        task = dataset.task if dataset.task in trained_tasks(config, run) else 0
        before = one_click(sam, sample, target, run=config.run("sam"), task=0)
        after = one_click(model, sample, target, run=run, task=task)
        rows.append(
            {
                "name": shown(name, config.profile),
                "image": sample.image,
                "point": first_click(target)[0].numpy(),
                "sam": before[0].numpy(),
                "uncertainty": uncertainty_map(*before_and_after(sam, refinement, sample, target))[0].numpy(),
                "sum": after[0].numpy(),
                "sam_iou": mask_iou(before, target).item(),
                "sum_iou": mask_iou(after, target).item(),
                "truth": target[0].numpy(),
            }
        )
    return rows


@torch.no_grad()
def one_output(
    model: Sum, sample: Sample, target: np.ndarray, setting: str, *, task: int | None = None
) -> np.ndarray:
    """The mask (H, W) bool for one click on ``target`` (H, W) bool, with the task prompt ``task``, if given.

    ``setting`` of `evaluate.interact`: "single", one fixed output, as the paper compares with HQ-SAM; or
    "ranked", the one that the model ranks first, since a task prompt is trained on the three outputs of the
    first round.
    """
    embedding = model.encode(model.preprocess(sample.image)[None])
    ((_, _, masks),) = interact(
        model,
        embedding,
        torch.zeros(1, dtype=torch.long),
        torch.from_numpy(target)[None],
        prompt="point",
        setting=setting,
        rounds=1,
        task=task or 0,
        task_rounds="none" if task is None else "first",
        keep=True,
    )
    return masks[0].cpu().numpy()


def task_rows(
    sam: Sum, model: Sum, salient: Dataset, entities: Dataset, count: int
) -> tuple[list[dict[str, np.ndarray]], list[tuple[int, int]]]:
    """What the task prompt asks for: one click on an object that belongs to a salient group, read in four
    ways.

    Gives rows for `sumlib.figures.pictures.panels` and their clicks (x, y): the first ``count`` images of
    both data sets whose salient mask holds more than one entity; clicked is the largest of these entities.
    """
    rows, points = [], []
    place = {name: k for k, name in enumerate(entities.names)}
    for name, whole in zip(salient.names, salient):
        if len(rows) == count or name not in place:
            continue
        parts = entities[place[name]]
        group = whole.masks[0]
        inside = [mask for mask in parts.masks if (mask & group).sum() > 0.9 * mask.sum()]
        if len(inside) < 2:
            continue
        clicked = max(inside, key=lambda mask: int(mask.sum()))
        masks = {
            "SAM": one_output(sam, whole, clicked, "ranked"),
            "SUM, no task": one_output(model, whole, clicked, "ranked"),
            "SUM, salient": one_output(model, whole, clicked, "ranked", task=1),
            "SUM, entity": one_output(model, whole, clicked, "ranked", task=2),
        }
        truths = {"truth, salient": group, "truth, entity": clicked}
        rows.append(
            {"image": whole.image}
            | {
                title: overlay(whole.image, mask, ORANGE if title == "SAM" else BLUE)
                for title, mask in masks.items()
            }
            | {title: overlay(whole.image, mask, GREEN) for title, mask in truths.items()}
        )
        points.append(tuple(first_click(torch.from_numpy(clicked)[None])[0].tolist()))
    return rows, points


def model_rows(
    models: Mapping[str, tuple[Sum, int | None]],
    dataset: Dataset,
    images: Sequence[int],
    profile: str = "paper",
) -> tuple[list[dict[str, np.ndarray]], list[tuple[int, int]]]:
    """The largest mask of each of ``images`` (numbers) by several models, after one click, one fixed output.

    ``models``: {title: (model, task prompt)}; ``profile`` tells how the data set is called. Gives rows, with
    the truth at the end, and clicks as `task_rows`.
    """
    rows, points = [], []
    for number in images:
        sample = dataset[number]
        target = sample.masks[sample.masks.sum((1, 2)).argmax()]
        row = {shown(dataset.name, profile): sample.image}
        for title, (model, task) in models.items():
            mask = one_output(model, sample, target, "single", task=task)
            iou = 100 * mask_iou(*(torch.from_numpy(m)[None] for m in (mask, target))).item()
            row[f"{title}, IoU {iou:.0f}"] = overlay(sample.image, mask, ORANGE if title == "SAM" else BLUE)
        rows.append(row | {"truth": overlay(sample.image, target, GREEN)})
        points.append(tuple(first_click(torch.from_numpy(target)[None])[0].tolist()))
    return rows, points


@torch.no_grad()
def follow(
    model: Sum, run: RunConfig, sample: Sample, k: int, *, rounds: int, setting: str, task: int
) -> tuple[list[np.ndarray], list[float]]:
    """Masks (H, W) bool and IoUs of each round for mask ``k`` of a sample, from a first point."""
    embedding = model.encode(model.preprocess(sample.image)[None])
    steps = list(
        interact(
            model,
            embedding,
            torch.zeros(1, dtype=torch.long),
            torch.from_numpy(sample.masks[k])[None],
            prompt="point",
            setting=setting,
            rounds=rounds,
            task=task,
            task_rounds=run.task_prompt,
            keep=True,
        )
    )
    return [mask[0].cpu().numpy() for *_, mask in steps], [iou.item() for iou, *_ in steps]


def round_rows(
    examples: Sequence[tuple[str, Sample, int]], followed: Sequence[tuple[list[np.ndarray], list[float]]]
) -> tuple[list[dict[str, np.ndarray]], list[tuple[int, int]]]:
    """A row for each example (title, sample, mask number): image, truth, first and last mask of `follow`;
    clicks."""
    rows, points = [], []
    for (title, sample, k), (masks, ious) in zip(examples, followed):
        rows.append(
            {
                title: sample.image,
                "truth": overlay(sample.image, sample.masks[k], GREEN),
                f"1 point: IoU {100 * ious[0]:.0f}": overlay(sample.image, masks[0], BLUE),
                f"{len(masks)} points: IoU {100 * ious[-1]:.0f}": overlay(sample.image, masks[-1], BLUE),
            }
        )
        points.append(tuple(first_click(torch.from_numpy(sample.masks[k])[None])[0].tolist()))
    return rows, points
