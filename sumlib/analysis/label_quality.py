"""How good pseudo-labels are where the truth is known: measured in place of the paper's human study (its Figures 44-47).

Raters there judged whether a pseudo-label's boundary and coverage are right. Here every pseudo-label is compared with the
true mask that it meets best, at any level. From this follow the calibration of the certainty and an answer to "which
masks shall I correct by hand next?". Analysis only: nothing here is read by training or selection.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import mannwhitneyu
from torch import Tensor

from sumlib.base.progress import with_bar
from sumlib.data.dataset import Dataset
from sumlib.metrics import boundary_iou, mask_iou
from sumlib.pseudo.store import Label, PseudoLabels
from sumlib.report.results import TASKS

COVERED, SHARP = 0.75, 0.6
"""IoU from which a pseudo-label covers its object, and boundary IoU from which its boundary is right."""
SCORES = {"predicted_iou": "SAM's predicted IoU", "stability": "stability", "certainty": "mean certainty"}
"""What is known of a pseudo-label without the truth: high should mean good."""


# ---- comparing with the truth ------------------------------------------------------------------------------------------


def compare(label: Label, truth: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The M pseudo-labels of an image beside its true masks, {level: (K, H, W) bool}; one row a pseudo-label.

    Columns: mask, level ("salient", "entity", "part" of the true mask with the largest IoU, the finer level where two are
    equal; "none" without any overlap), iou, biou (with that mask; 0 without overlap), refined_iou, refined_biou (of the refined
    mask with the same true mask), and `SCORES`; "certainty" is the mean over the mask's pixels. Scores in [0, 1].
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
    """For each of M masks the true one with the largest IoU (M, H, W), its level (M,) or "none", and whether they overlap (M,)."""
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
    """`compare` for every image of ``labels`` that has a truth ({level: images with their true masks}), with the column "image" first; and the images without."""
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
            f"none of the {len(labels.images)} images of {labels.path.name} has true masks; is it the micro set?"
        )
    return pd.concat(frames, ignore_index=True), without


def judged(masks: pd.DataFrame) -> pd.DataFrame:
    """What a rater would say of each pseudo-label: columns coverage, boundary, both (bool), of SAM's and, with "refined_" before, of the refined mask."""
    answers = {}
    for name in ("", "refined_"):
        answers[f"{name}coverage"] = masks[f"{name}iou"] >= COVERED
        answers[f"{name}boundary"] = masks[f"{name}biou"] >= SHARP
        answers[f"{name}both"] = answers[f"{name}coverage"] & answers[f"{name}boundary"]
    return pd.DataFrame(answers)


def share_interval(
    values: np.ndarray, images: Sequence[str], generator: np.random.Generator, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean of ``values`` (one a mask) and its 95 % interval by bootstrap over images, all masks of an image together."""
    sums = (
        pd.DataFrame({"image": images, "value": np.asarray(values, float)})
        .groupby("image", sort=False)["value"]
        .agg(["sum", "size"])
        .to_numpy(float)
    )
    weights = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    means = (weights @ sums[:, 0]) / (weights @ sums[:, 1])
    return float(sums[:, 0].sum() / sums[:, 1].sum()), *(float(v) for v in np.percentile(means, [2.5, 97.5]))


@dataclass(frozen=True)
class Separation:
    """How well a score tells good pseudo-labels from bad ones."""

    good: float
    """Median of the good ones."""
    bad: float
    auc: float
    """Probability that a good one has the larger score (ties half): 0.5 is chance."""
    p: float
    """Of the two-sided Mann-Whitney test; masks of an image are taken as independent."""


def separation(scores: np.ndarray, good: np.ndarray) -> Separation:
    """Compare the scores (N,) of good and bad pseudo-labels, ``good`` (N,) bool. NaN where one kind is missing."""
    scores, good = np.asarray(scores, float), np.asarray(good, bool)
    if good.all() or not good.any():
        return Separation(
            *(float(np.median(part)) if len(part) else np.nan for part in (scores[good], scores[~good])),
            np.nan,
            np.nan,
        )
    test = mannwhitneyu(scores[good], scores[~good], alternative="two-sided")
    return Separation(
        float(np.median(scores[good])),
        float(np.median(scores[~good])),
        float(test.statistic) / (good.sum() * (~good).sum()),
        float(test.pvalue),
    )


# ---- calibration of the certainty --------------------------------------------------------------------------------------


def certainty_bins(
    labels: PseudoLabels, truth: Mapping[str, Dataset], bins: int = 20, *, progress: bool = True
) -> pd.DataFrame:
    """How many pixels have which certainty, and how many of them SAM's mask has right: low, high, pixels, correct, certainty (mean).

    Right is what agrees with the true mask of the largest IoU; pseudo-labels below IoU 0.5 are of nothing in particular and left out.
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


def recalibrate(bins: pd.DataFrame) -> np.ndarray:
    """Probability of being right for each bin of `certainty_bins`: monotone in the certainty, by isotonic regression weighted with the pixels.

    Bins without a pixel take the value of the nearest bin below that has some, or else of the first.
    """
    seen = np.flatnonzero(bins["pixels"])
    if not len(seen):
        raise ValueError("no bin has a pixel: nothing to calibrate on")
    rate = (bins["correct"] / bins["pixels"]).to_numpy()[seen]
    fitted = isotonic_regression(rate, weights=bins["pixels"].to_numpy(float)[seen], increasing=True).x
    return fitted[np.searchsorted(seen, np.arange(len(bins)), side="right").clip(1) - 1]


def calibration_error(
    bins: pd.DataFrame, stated: np.ndarray | None = None, above: float = 0.0, below: float = 1.0
) -> float:
    """Expected calibration error: mean of |share of right pixels - stated probability| over the pixels of the bins within [above, below].

    ``stated`` (one a bin): by default the mean certainty.
    """
    chosen = (bins["pixels"] > 0) & (bins["low"] >= above - 1e-9) & (bins["high"] <= below + 1e-9)
    part, stated = (
        bins[chosen],
        (bins["certainty"].to_numpy() if stated is None else np.asarray(stated))[chosen],
    )
    if part.empty:
        return float("nan")
    return float(np.average(np.abs(part["correct"] / part["pixels"] - stated), weights=part["pixels"]))


# ---- which masks to correct next ---------------------------------------------------------------------------------------


def correction_curve(quality: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Mean quality (N + 1,) of N masks after the first 0, 1, ..., N of ``order`` (indices (N,)) were corrected by hand, which makes their quality 1.

    >>> correction_curve(np.array([0.5, 1.0]), np.array([0, 1])).tolist()
    [0.75, 1.0, 1.0]
    """
    gains = (1 - np.asarray(quality, float))[order]
    return np.mean(quality) + np.concatenate([[0], gains.cumsum()]) / len(quality)


def advantage(quality: np.ndarray, score: np.ndarray) -> float:
    """How much better than at random it is to correct the lowest ``score`` first: 0 chance, 1 the best possible order, negative worse.

    The area between the order's `correction_curve` and the straight line that a random order gives on average, relative to that of
    the order by true quality. Masks of one score count as in random order.
    """
    quality, score = np.asarray(quality, float), np.asarray(score, float)

    def area(by: np.ndarray) -> float:
        values, place = np.unique(by, return_inverse=True)
        gain = np.bincount(place, weights=1 - quality) / np.bincount(place)  # of a tie's members: its mean
        curve = np.concatenate([[0], gain[np.sort(place)].cumsum()])
        return float(np.trapezoid(curve - np.linspace(0, curve[-1], len(curve))))

    best = area(quality)
    return area(score) / best if best > 0 else float("nan")
