"""Interactive evaluation: both IoUs of every mask at every round, by fixed clicks (docs/method.md §8)."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sumlib.base.masks import mask_box
from sumlib.base.parallel import each
from sumlib.base.progress import with_bar
from sumlib.config.params import Config, EvaluateConfig
from sumlib.config.runs import RunConfig, nearest
from sumlib.data.dataset import Dataset, Sample
from sumlib.data.registry import REGISTRY, TASK_GROUPS
from sumlib.data.tasks import Task
from sumlib.metrics import boundary_iou
from sumlib.model.prompts import Prompts
from sumlib.model.rounds import Round, best_of, interactive_rounds
from sumlib.model.sum import Sum
from sumlib.sampler import boundary_click, first_click, next_click

GROUP_OF = {name: group for group, names in TASK_GROUPS.items() for name in names}
"""Test set -> task group."""
PROMPTS = ["point", "box", "boundary-point"]
SETTINGS = ["oracle", "single", "ranked"]
_CHUNK_PIXELS = 96 * 64 * 64  # masks are decoded together up to this many pixels


@dataclass(frozen=True)
class _Masks:
    """Masks of several images of one size, as one batch."""

    embedding: Tensor  # (B, C, h, w)
    image: Tensor  # (N,) index into embedding
    target: Tensor  # (N, H, W) bool
    keys: list[tuple[str, int]]  # image name and mask number


def trained_tasks(config: Config, run: RunConfig) -> frozenset[int]:
    """Task ids (1 salient, 2 entity, 3 part) of the run's human masks; none if it has none."""
    return frozenset(REGISTRY[name].task for name in config.data.human.get(run.budget, ()))


def evaluate_run(
    model: Sum,
    datasets: Sequence[Dataset],
    *,
    run: RunConfig,
    config: EvaluateConfig,
    trained_tasks: Collection[int] = (),
    prompts: Sequence[str] | None = None,
    settings: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Evaluate ``model`` on the good samples of data sets; a row for each mask, prompt, setting and round.

    On a CPU ``config.workers`` processes share the data sets.

    ``prompts`` are the first prompts ("point", "box", "boundary-point"), by default the configuration's; a
    boundary point is a single round (Table 5); ``settings`` ("oracle", "single") likewise. ``trained_tasks``
    are the task ids of the run's human masks: a set of another task is prompted with id 0, "unspecified".
    Columns: run, model, train_set, seed, task, dataset, image, mask, prompt, setting, round, iou, biou.
    """
    model.eval()
    first = prompts or config.prompts
    chosen = replace(config, settings=tuple(settings or config.settings))
    one = partial(_evaluate_set, model, run=run, config=chosen, trained_tasks=trained_tasks, prompts=first)
    workers = config.workers if model.sam.device.type == "cpu" else 1
    order = sorted(
        range(len(datasets)), key=lambda k: -len(datasets[k])
    )  # the longest first, or one worker waits for it at the end
    found = with_bar(
        each(one, [datasets[k] for k in order], workers), f"evaluate {run.name}", total=len(datasets)
    )
    table = pd.concat(found, ignore_index=True)
    for column, value in (
        ("seed", run.seed),
        ("train_set", run.train_set),
        ("model", run.model),
        ("run", run.name),
    ):
        table.insert(0, column, value)
    return table.sort_values(
        ["dataset", "image", "mask", "prompt", "setting", "round"], kind="stable", ignore_index=True
    )


def _evaluate_set(
    model: Sum,
    dataset: Dataset,
    *,
    run: RunConfig,
    config: EvaluateConfig,
    trained_tasks: Collection[int],
    prompts: Sequence[str],
) -> pd.DataFrame:
    """`evaluate_run` of one data set, without the columns that are the same in all rows."""
    good, rows = dataset.good(), []
    task = dataset.task if dataset.task in trained_tasks else Task.UNSPECIFIED
    samples = (
        good[i]
        for i in range(len(good) if config.limit_images is None else min(len(good), config.limit_images))
    )
    for masks in _batches(model, samples):
        for prompt in prompts:
            for setting in config.settings:
                rounds = 1 if prompt == "boundary-point" else config.rounds
                scores = interact(
                    model,
                    masks.embedding,
                    masks.image,
                    masks.target,
                    prompt=prompt,
                    setting=setting,
                    rounds=rounds,
                    task=task,
                    task_rounds=run.task_prompt,
                    boundary_distance=config.boundary_distance,
                )
                rows.append(
                    _rows(
                        masks,
                        scores,
                        dataset=dataset.name,
                        task=GROUP_OF.get(dataset.name, dataset.name),
                        prompt=prompt,
                        setting=setting,
                    )
                )
    if not rows:
        why = f": {dataset.bad[0].path}: {dataset.bad[0].reason}" if dataset.bad else ""
        raise ValueError(f"{dataset.name}: none of its {len(dataset)} samples can be evaluated{why}")
    return pd.concat(rows, ignore_index=True)


def _batches(model: Sum, samples: Iterator[Sample]) -> Iterator[_Masks]:
    """Gather masks of equally large images into batches of bounded size."""
    held: list[Sample] = []
    for sample in samples:
        pixels = sum(s.masks.size for s in held) + sample.masks.size
        if held and (sample.image.shape != held[0].image.shape or pixels > _CHUNK_PIXELS):
            yield _embed(model, held)
            held = []
        held.append(sample)
    if held:
        yield _embed(model, held)


@torch.no_grad()
def _embed(model: Sum, samples: list[Sample]) -> _Masks:
    embedding = model.encode(torch.stack([model.preprocess(s.image) for s in samples]))
    counts = torch.tensor([len(s.masks) for s in samples])
    keys = [(s.name, k) for s in samples for k in range(len(s.masks))]
    target = torch.from_numpy(np.concatenate([s.masks for s in samples]))
    return _Masks(embedding, torch.arange(len(samples)).repeat_interleave(counts), target, keys)


@torch.no_grad()
def interact(
    model: Sum,
    embedding: Tensor,
    image: Tensor,
    target: Tensor,
    *,
    prompt: str,
    setting: str,
    rounds: int,
    task: int = 0,
    task_rounds: str = "none",
    boundary_distance: int = 10,
    keep: bool = False,
) -> list[tuple[Tensor, ...]]:
    """Prompt N masks for ``rounds`` rounds.

    Returns for each round (IoU (N,), boundary IoU (N,)), with ``keep`` also the masks (N, H, W) bool.

    ``embedding`` (B, C, h, w), ``image`` (N,) index into it, ``target`` (N, H, W) bool at the original size.
    In the oracle setting a first round's best of three outputs, by IoU with the target, is taken and shown to
    the model again; in the single setting output 0, in the ranked one the output of three whose IoU the model
    predicts to be the largest. ``task_rounds``: "none", "first" or "continuous".
    """
    for what, name, known in (("first prompt", prompt, PROMPTS), ("setting", setting, SETTINGS)):
        if name not in known:
            raise ValueError(f"no {what} {name!r}; the nearest are: {nearest(name, known)}")
    n, size, device = len(target), target.shape[1:], embedding.device
    own, target = embedding[image.to(device)], target.to(device)
    rows, tasks = torch.arange(n, device=device), torch.full((n,), task, device=device)

    def decode(prompts: Prompts, shown: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
        given = task_rounds == "continuous" or (task_rounds == "first" and number == 0)
        return model.decode_codes(
            own, prompts.xy, prompts.codes, mask_inputs=shown, tasks=tasks if given else None
        )

    def next_prompts(turn: Round) -> Prompts:
        point, label = next_click(target, turn.mask)
        return turn.prompts.add(model.to_input_frame(point.float(), size), label)

    if prompt == "box":
        first = Prompts.from_boxes(
            model.to_input_frame(mask_box(target).view(n, 2, 2).float(), size).flatten(1)
        )
    else:
        click = first_click(target) if prompt == "point" else boundary_click(target, boundary_distance)
        first = Prompts.from_points(model.to_input_frame(click.float(), size)[:, None])
    results = []
    for turn in interactive_rounds(decode, first, rounds, next_prompts, several=setting != "single"):
        masks = model.upscale(turn.logits, size) > 0  # (N, K, H, W)
        best, iou = best_of(masks, target)
        if setting == "ranked":
            best = turn.score.argmax(1)
        mask = masks[rows, best]
        turn.take(best, mask)
        results.append((iou[rows, best], boundary_iou(mask, target), *([mask] if keep else [])))
    return results


def one_click(model: Sum, sample: Sample, target: Tensor, *, run: RunConfig, task: int) -> Tensor:
    """Masks (N, H, W) bool of one image after one click on each of ``target`` (N, H, W) bool.

    In the oracle setting of `interact`.
    """
    with torch.no_grad():
        embedding = model.encode(model.preprocess(sample.image)[None])
    image = torch.zeros(len(target), dtype=torch.long)
    ((_, _, masks),) = interact(
        model,
        embedding,
        image,
        target,
        prompt="point",
        setting="oracle",
        rounds=1,
        task=task,
        task_rounds=run.task_prompt,
        keep=True,
    )
    return masks.cpu()


def _rows(masks: _Masks, scores: list[tuple[Tensor, Tensor]], **same) -> pd.DataFrame:
    """The batch's results as rows."""
    parts = []
    for number, (iou, biou) in enumerate(scores, start=1):
        names, numbers = zip(*masks.keys)
        parts.append(
            pd.DataFrame(
                {
                    "task": same["task"],
                    "dataset": same["dataset"],
                    "image": names,
                    "mask": numbers,
                    "prompt": same["prompt"],
                    "setting": same["setting"],
                    "round": number,
                    "iou": iou.cpu().numpy(),
                    "biou": biou.cpu().numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
