"""How good pseudo-labels are where the truth is known: measured in place of the paper's human study (its
Figures 44-47).

Raters there judged whether a pseudo-label's boundary and coverage are right. Here every pseudo-label is
compared with the true mask that it meets best, at any level. From this follow the calibration of the
certainty and an answer to "which masks shall I correct by hand next?". Analysis only: nothing here is read by
training or selection.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sumlib.base.progress import with_bar
from sumlib.data.dataset import Dataset
from sumlib.data.tasks import TASKS
from sumlib.metrics import boundary_iou, mask_iou
from sumlib.pseudo.store import Label, PseudoLabels

# ---- comparing with the truth
# ------------------------------------------------------------------------------------------


def compare(label: Label, truth: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The M pseudo-labels of an image beside its true masks, {level: (K, H, W) bool}; one row a pseudo-label.

    Columns: mask, level ("salient", "entity", "part" of the true mask with the largest IoU, the finer level
    where two are equal; "none" without any overlap), iou, biou (with that mask; 0 without overlap),
    refined_iou, refined_biou (of the refined mask with the same true mask), and `SCORES`; "certainty" is the
    mean over the mask's pixels. Scores in [0, 1].
    """
    masks, refined = torch.from_numpy(label.masks), torch.from_numpy(label.refined)
    target, level, found = _nearest(masks, truth)
    rows = {"mask": np.arange(len(masks)), "level": level}
    for name, each in (("", masks), ("refined_", refined)):
        rows[f"{name}iou"] = (mask_iou(each, target) * found).double().numpy()
        rows[f"{name}biou"] = (boundary_iou(each, target) * found).double().numpy()
    certainty = (label.certainty * label.masks).sum((1, 2)) / label.masks.sum((1, 2))
    return pd.DataFrame(
        rows | {"predicted_iou": label.predicted_iou, "stability": label.stability, "certainty": certainty}
    )


def _nearest(masks: Tensor, truth: Mapping[str, np.ndarray]) -> tuple[Tensor, np.ndarray, Tensor]:
    """For each of M masks the true one with the largest IoU (M, H, W), its level (M,) or "none", and whether
    they overlap (M,)."""
    levels = [
        level for level in reversed(TASKS) for _ in truth.get(level, ())
    ]  # the finer first: argmax takes the first of equals
    if not levels:
        raise ValueError("the image has no true masks; leave it out")
    true = torch.from_numpy(
        np.concatenate([truth[level] for level in reversed(TASKS) if level in truth])
    )  # (K, H, W)
    overlap = masks.flatten(1).float() @ true.flatten(1).float().T  # (M, K)
    area = masks.flatten(1).sum(1)[:, None] + true.flatten(1).sum(1)
    best, found = (overlap / (area - overlap)).argmax(1), overlap.amax(1) > 0
    return true[best], np.where(found.numpy(), np.array(levels)[best.numpy()], "none"), found


def _with_truth(
    labels: PseudoLabels, truth: Mapping[str, Dataset], title: str, progress: bool
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The images of ``labels`` and the true masks of each by level, none if it has no truth."""
    places = {level: {name: k for k, name in enumerate(dataset.names)} for level, dataset in truth.items()}
    for name in with_bar(labels.images, title, progress):
        yield (
            name,
            {level: truth[level][place[name]].masks for level, place in places.items() if name in place},
        )


def compare_all(
    labels: PseudoLabels, truth: Mapping[str, Dataset], *, progress: bool = True
) -> tuple[pd.DataFrame, list[str]]:
    """`compare` for every image of ``labels`` that has a truth ({level: images with their true masks}), with
    the column "image" first; and the images without."""
    frames, without = [], []
    for name, masks in _with_truth(labels, truth, "compare with the truth", progress):
        if not masks:
            without.append(name)
            continue
        frame = compare(labels[name], masks)
        frame.insert(0, "image", name)
        frames.append(frame)
    if not frames:
        raise ValueError(
            f"none of the {len(labels.images)} images of {labels.path.name} has true masks; is it the micro "
            "set?"
        )
    return pd.concat(frames, ignore_index=True), without


# ---- calibration of the certainty
# --------------------------------------------------------------------------------------


def certainty_bins(
    labels: PseudoLabels, truth: Mapping[str, Dataset], bins: int = 20, *, progress: bool = True
) -> pd.DataFrame:
    """How many pixels have which certainty, and how many of them SAM's mask has right: low, high, pixels,
    correct, certainty (mean).

    Right is what agrees with the true mask of the largest IoU; pseudo-labels below IoU 0.5 are of nothing in
    particular and left out.
    """
    counts = np.zeros((3, bins))
    for name, masks in _with_truth(labels, truth, "certainty", progress):
        if not masks:
            continue
        label = labels[name]
        target, _, _ = _nearest(torch.from_numpy(label.masks), masks)
        good = (mask_iou(torch.from_numpy(label.masks), target) >= 0.5).numpy()
        right, certainty = (label.masks == target.numpy())[good].ravel(), label.certainty[good].ravel()
        place = (certainty * bins).astype(int).clip(max=bins - 1)
        counts += [
            np.bincount(place, weights=w, minlength=bins)
            for w in (np.ones(place.size), right, certainty.astype(float))
        ]
    edges, pixels = np.linspace(0, 1, bins + 1), np.maximum(counts[0], 1)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "pixels": counts[0].astype(int),
            "correct": counts[1].astype(int),
            "certainty": np.where(counts[0] > 0, counts[2] / pixels, (edges[:-1] + edges[1:]) / 2),
        }
    )
