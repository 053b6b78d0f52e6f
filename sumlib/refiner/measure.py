"""What refinement does to SAM's masks where the truth is known: IoUs before and after, and whether certainty tells right from wrong (METHOD section 3)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sumlib.base.masks import mask_box
from sumlib.base.progress import with_bar
from sumlib.data.dataset import Sample
from sumlib.metrics import boundary_iou, mask_iou
from sumlib.model.prompts import FOREGROUND
from sumlib.model.rounds import best_of
from sumlib.model.sum import Sum
from sumlib.refiner.module import Refiner, refine
from sumlib.report.resampling import image_draw, interval
from sumlib.sampler import first_click
from sumlib.uncertainty import certainty_map


@torch.no_grad()
def measure_refinement(
    model: Sum,
    refiner: Refiner,
    levels: Mapping[str, Sequence[Sample]],
    *,
    prompt: str = "point",
    threshold: float = 0.6,
    bins: int = 20,
    progress: bool = True,
) -> dict:
    """SAM's masks before and after refinement, and how often a pixel of SAM's mask is right given its certainty (JSON-ready).

    Each human mask is prompted once (`before_and_after`), SAM's best of three outputs is refined; no filter.
    ``levels[level]`` are images with true masks, also in the result: "levels": per level equally long lists
    "image", "sam_iou", "refined_iou", "sam_biou", "refined_biou" with an entry per mask; "certainty":
    "threshold" and per image (over all levels) lists "image", "certain", "certain_correct", "uncertain",
    "uncertain_correct" of pixel counts, and "bins": "low", "high", "pixels", "correct".
    """
    scores, counts, hist = {}, {}, np.zeros((2, bins), np.int64)
    for level, samples in levels.items():
        rows: dict[str, list] = {
            key: [] for key in ("image", "sam_iou", "refined_iou", "sam_biou", "refined_biou")
        }
        for sample in with_bar(samples, f"measure {level}", progress):
            target = torch.from_numpy(sample.masks).to(model.sam.device)
            before, after = before_and_after(model, refiner, sample, target, prompt)
            for name, logits in (("sam", before), ("refined", after)):
                rows[f"{name}_iou"] += mask_iou(logits > 0, target).tolist()
                rows[f"{name}_biou"] += boundary_iou(logits > 0, target).tolist()
            rows["image"] += [sample.name] * len(target)
            certainty, correct = certainty_map(before, after), (before > 0) == target
            sure = certainty > threshold
            pixels = [sure.sum(), (sure & correct).sum(), (~sure).sum(), (~sure & correct).sum()]
            counts[sample.name] = counts.get(sample.name, 0) + np.array([int(count) for count in pixels])
            place = (certainty.flatten() * bins).long().clamp(max=bins - 1).cpu()
            right = place[correct.flatten().cpu()]
            hist += np.stack([np.bincount(part, minlength=bins) for part in (place, right)])
        scores[level] = {
            key: [v if isinstance(v, str) else round(v, 6) for v in values] for key, values in rows.items()
        }
    names = ("certain", "certain_correct", "uncertain", "uncertain_correct")
    certain = {name: [int(count[k]) for count in counts.values()] for k, name in enumerate(names)}
    edges = [round(k / bins, 6) for k in range(bins + 1)]
    shown = [
        {"low": edges[k], "high": edges[k + 1], "pixels": int(hist[0, k]), "correct": int(hist[1, k])}
        for k in range(bins)
    ]
    return {
        "levels": scores,
        "certainty": {"threshold": threshold, "image": list(counts), **certain, "bins": shown},
    }


@torch.no_grad()
def before_and_after(
    model: Sum, refiner: Refiner, sample: Sample, target: Tensor, prompt: str = "point"
) -> tuple[Tensor, Tensor]:
    """SAM's and refined logits (M, H, W) of each mask of ``target`` (M, H, W) bool; SAM's output that agrees best with it.

    ``prompt``: "point" is the first click of METHOD section 8, "box" the box of the target. The refiner needs
    a point that produced the mask; where a box did, it is given the mask's own first click (the box's centre
    if the mask is empty).
    """
    if prompt not in ("point", "box"):
        raise ValueError(f"no prompt {prompt!r}; known are point and box")
    target = target.to(model.sam.device)
    size, rows = target.shape[1:], torch.arange(len(target), device=target.device)
    pixels = model.preprocess(sample.image)[None]
    embeddings = model.encode(pixels).float().expand(len(target), -1, -1, -1)
    if prompt == "point":
        points = model.to_input_frame(first_click(target).float(), size)
        labels = torch.full((len(target), 1), FOREGROUND, device=target.device)
        low, _ = model.decode(embeddings, points=points[:, None], labels=labels)
    else:
        low, _ = model.decode(
            embeddings, boxes=model.to_input_frame(mask_box(target).view(-1, 2, 2), size).flatten(1)
        )
    full = model.upscale(low[:, 1:], size)  # (M, 3, H, W)
    best, _ = best_of(full > 0, target)
    masks = full[rows, best] > 0
    if prompt == "box":
        points = mask_box(target).view(-1, 2, 2).mean(1)
        some = masks.flatten(1).any(1)
        if some.any():
            points[some] = first_click(masks[some]).float()
        points = model.to_input_frame(points, size)
    boxes = model.to_input_frame(mask_box(masks).view(-1, 2, 2), size).flatten(1)
    seen = refiner.embed(embeddings[:1], lambda: pixels).expand(len(target), -1, -1, -1)
    refined = refine(refiner, seen, low[:, 1:][rows, best], boxes, points)
    return full[rows, best], model.upscale(refined[:, None], size)[:, 0]


def changes(
    measured: Mapping[str, Mapping[str, Mapping]], groups: Mapping[str, Sequence[str]], *, draws: int = 2000
) -> pd.DataFrame:
    """What refinement does by task group, in points: name, metric, task, sam, refined, difference, low, high (95 %), worse (% of the masks).

    ``measured[name][data set]`` is a level of `measure_refinement`; ``groups`` {task group: its data sets},
    to which "all" is added. Means are over masks, then over data sets; intervals are by bootstrap over the
    images of each data set, with the same draws for every name and metric.
    """
    groups = {**groups, "all": [name for names in groups.values() for name in names]}
    first, rng = next(iter(measured.values())), np.random.default_rng(0)
    draw = {name: image_draw(sorted(set(first[name]["image"])), rng, draws) for name in groups["all"]}
    rows = []
    for name, by_set in measured.items():
        for metric, key in (("mIoU", "iou"), ("mBIoU", "biou")):
            for group, datasets in groups.items():
                resampled, sam, refined, worse = [], [], [], []
                for dataset in datasets:
                    before, after = (
                        100 * np.array(by_set[dataset][f"{who}_{key}"]) for who in ("sam", "refined")
                    )
                    resampled.append(draw[dataset](after - before, by_set[dataset]["image"]))
                    for means, value in (
                        (sam, before.mean()),
                        (refined, after.mean()),
                        (worse, 100 * (after < before).mean()),
                    ):
                        means.append(value)
                change = interval(np.mean(refined) - np.mean(sam), np.mean(resampled, 0))
                rows.append(
                    {
                        "name": name,
                        "metric": metric,
                        "task": group,
                        "sam": np.mean(sam),
                        "refined": np.mean(refined),
                        "difference": change.value,
                        "low": change.low,
                        "high": change.high,
                        "worse": np.mean(worse),
                    }
                )
    return pd.DataFrame(rows)
