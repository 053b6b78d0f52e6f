"""What refinement does to SAM's masks where the truth is known (docs/method.md section 3).

IoUs before and after, and whether certainty tells right from wrong.
"""

from collections.abc import Mapping, Sequence

import numpy as np
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
    """SAM's masks before and after refinement, and how often a pixel is right by its certainty (JSON-ready).

    Each human mask is prompted once (`before_and_after`), SAM's best of three outputs is refined; no filter.
    ``levels[level]`` are images with true masks, also in the result: "levels": per level equally long lists
    "image", "sam_iou", "refined_iou", "sam_biou", "refined_biou" with an entry per mask; "certainty":
    "threshold" (as given, say `finetune.theta`) and per image (over all levels) lists "image", "certain",
    "certain_correct", "uncertain", "uncertain_correct" of pixel counts, and "bins": "low", "high", "pixels",
    "correct".
    """
    scores, counts, hist = {}, {}, np.zeros((2, bins), np.int64)
    for level, samples in levels.items():
        rows: dict[str, list] = {
            key: [] for key in ("image", "sam_iou", "refined_iou", "sam_biou", "refined_biou")
        }
        for sample in with_bar(samples, f"measure {level}", progress):
            target = torch.from_numpy(sample.masks)
            before, after = before_and_after(model, refiner, sample, target, prompt)
            target = target.to(before.device)
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
    """SAM's and refined logits (M, H, W) for each mask of ``target`` (M, H, W) bool, of SAM's best output.

    ``prompt``: "point" is the first click of docs/method.md §8, "box" the target's box. The refiner needs
    a point that produced the mask; where a box did, it is given the mask's own first click (the box's centre
    if the mask is empty).
    """
    if prompt not in ("point", "box"):
        raise ValueError(f"no prompt {prompt!r}; known are point and box")
    pixels = model.preprocess(sample.image)[None]
    target = target.to(pixels.device)
    size, rows = target.shape[1:], torch.arange(len(target), device=target.device)
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
