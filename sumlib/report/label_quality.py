"""How good pseudo-labels are, from comparisons with the truth (`sumlib.analysis.label_quality`): Figures
44-47 and beyond.

Shares of right ones, whether scores tell right from wrong, calibration of the certainty, and which masks to
correct first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression
from scipy.stats import mannwhitneyu

from sumlib.base.files import write_text
from sumlib.report.intervals import share_interval
from sumlib.report.results import TASKS
from sumlib.report.text import fixed, markdown_table, write_csv

COVERED, SHARP = 0.75, 0.6
"""IoU from which a pseudo-label covers its object, and boundary IoU from which its boundary is right."""
SCORES = {"predicted_iou": "SAM's predicted IoU", "stability": "stability", "certainty": "mean certainty"}
"""What is known of a pseudo-label without the truth: high should mean good."""


def answers(masks: pd.DataFrame) -> pd.DataFrame:
    """What a rater would say of each pseudo-label: columns coverage, boundary, both (bool), of SAM's and,
    with "refined_" before, of the refined mask."""
    right = {}
    for name in ("", "refined_"):
        right[f"{name}coverage"] = masks[f"{name}iou"] >= COVERED
        right[f"{name}boundary"] = masks[f"{name}biou"] >= SHARP
        right[f"{name}both"] = right[f"{name}coverage"] & right[f"{name}boundary"]
    return pd.DataFrame(right)


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
    """Compare the scores (N,) of good and bad pseudo-labels, ``good`` (N,) bool. NaN where one kind is
    missing."""
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


def recalibrate(bins: pd.DataFrame) -> np.ndarray:
    """Probability of being right for each bin of `certainty_bins`: monotone in the certainty, by isotonic
    regression weighted with the pixels.

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
    """Expected calibration error: mean of |share of right pixels - stated probability| over the pixels of the
    bins within [above, below].

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


def correction_curve(quality: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Mean quality (N + 1,) of N masks after the first 0, 1, ..., N of ``order`` (indices (N,)) were
    corrected by hand, which makes their quality 1.

    >>> correction_curve(np.array([0.5, 1.0]), np.array([0, 1])).tolist()
    [0.75, 1.0, 1.0]
    """
    gains = (1 - np.asarray(quality, float))[order]
    return np.mean(quality) + np.concatenate([[0], gains.cumsum()]) / len(quality)


def advantage(quality: np.ndarray, score: np.ndarray) -> float:
    """How much better than at random it is to correct the lowest ``score`` first: 0 chance, 1 the best
    possible order, negative worse.

    The area between the order's `correction_curve` and the straight line that a random order gives on
    average, relative to that of the order by true quality. Masks of one score count as in random order.
    """
    quality, score = np.asarray(quality, float), np.asarray(score, float)

    def area(by: np.ndarray) -> float:
        values, place = np.unique(by, return_inverse=True)
        gain = np.bincount(place, weights=1 - quality) / np.bincount(place)  # of a tie's members: its mean
        curve = np.concatenate([[0], gain[np.sort(place)].cumsum()])
        return float(np.trapezoid(curve - np.linspace(0, curve[-1], len(curve))))

    best = area(quality)
    return area(score) / best if best > 0 else float("nan")


# ---- the report
# ----------------------------------------------------------------------------------------------------

QUESTIONS = ("coverage", "boundary", "both")
FEWEST = 20
"""Levels with fewer pseudo-labels have no row in `level_changes`: too few to say anything."""


def right_shares(masks: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Shares of right pseudo-labels in %, by level of the true mask, of SAM's and of the refined masks.

    ``masks`` as from `sumlib.analysis.label_quality.compare_all`. Columns: level ("all" first), masks of,
    pseudo_labels, share, and for each of `QUESTIONS` its share, _low and _high (95 %, bootstrap over images),
    miou, mbiou.
    """
    right, rows = answers(masks), []
    for level in ["all", *dict.fromkeys(masks["level"].sort_values())]:
        here = np.ones(len(masks), bool) if level == "all" else (masks["level"] == level).to_numpy()
        for who, prefix in (("SAM", ""), ("refined", "refined_")):
            row = {
                "level": level,
                "masks of": who,
                "pseudo_labels": int(here.sum()),
                "share": 100 * here.mean(),
            }
            for question in QUESTIONS:
                values = right[prefix + question].to_numpy()[here]
                share = [100 * value for value in share_interval(values, masks["image"][here], generator)]
                row |= dict(zip((question, f"{question}_low", f"{question}_high"), share))
            row |= {f"m{key}": 100 * masks[prefix + key][here].mean() for key in ("iou", "biou")}
            rows.append(row)
    return pd.DataFrame(rows)


def level_changes(masks: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """What refinement changes by level (Figure 47), in points.

    Columns: level, metric ("IoU", "boundary IoU"), value, low, high (95 %), better, worse (% of the
    pseudo-labels). Levels with fewer than `FEWEST` pseudo-labels are left out.
    """
    rows = []
    for level in TASKS:
        here = (masks["level"] == level).to_numpy()
        if here.sum() < FEWEST:
            continue
        for metric, key in (("IoU", "iou"), ("boundary IoU", "biou")):
            change = 100 * (masks["refined_" + key] - masks[key]).to_numpy()[here]
            shares = 100 * (change > 0).mean(), 100 * (change < 0).mean()
            rows.append((level, metric, *share_interval(change, masks["image"][here], generator), *shares))
    return pd.DataFrame(rows, columns=["level", "metric", "value", "low", "high", "better", "worse"])


@dataclass(frozen=True)
class Quality:
    """All that the report on the quality of pseudo-labels says."""

    masks: pd.DataFrame
    shares: pd.DataFrame
    """`right_shares`."""
    tests: Mapping[str, Separation]
    """Of each of `SCORES`: right against wrong ones."""
    changes: pd.DataFrame
    """`level_changes`."""
    errors: Mapping[str, tuple[float, float]]
    """Calibration error before and after recalibration, of which pixels."""
    orders: Mapping[str, Mapping[str, np.ndarray]]
    """{metric: {score or "the truth (best possible)": indices, first to correct first}}."""
    advantages: Mapping[str, Mapping[str, float]]
    """{metric: {score: `advantage`}}."""

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The pseudo-labels' quality by metric."""
        return {"IoU": self.masks["iou"].to_numpy(), "boundary IoU": self.masks["biou"].to_numpy()}


def quality_report(
    masks: pd.DataFrame, bins: pd.DataFrame, stated: np.ndarray, generator: np.random.Generator
) -> Quality:
    """Everything from comparisons ``masks`` and ``bins`` (`certainty_bins`); ``stated`` is the recalibrated
    certainty."""
    shares = right_shares(masks, generator)
    good = answers(masks)["both"].to_numpy()
    tests = {name: separation(masks[name], good) for name in SCORES}
    changes = level_changes(masks, generator)
    errors = {
        where: (calibration_error(bins, below=limit), calibration_error(bins, stated, below=limit))
        for where, limit in (("all pixels", 1.0), ("pixels with c of at most 0.9", 0.9))
    }
    orders, advantages = {}, {}
    for metric, key in (("IoU", "iou"), ("boundary IoU", "biou")):
        value = masks[key].to_numpy()
        orders[metric] = {name: masks[name].to_numpy().argsort(kind="stable") for name in SCORES}
        orders[metric]["the truth (best possible)"] = value.argsort(kind="stable")
        advantages[metric] = {name: advantage(value, masks[name]) for name in SCORES}
    return Quality(masks, shares, tests, changes, errors, orders, advantages)


def shares_markdown(shares: pd.DataFrame) -> str:
    """`right_shares` for people."""
    rows = [
        [
            row["level"],
            row["masks of"],
            f"{row['pseudo_labels']:,} ({row['share']:.0f} %)",
            *(f"{row[q]:.0f} % ({row[q + '_low']:.0f} to {row[q + '_high']:.0f})" for q in QUESTIONS),
            fixed(row["miou"]),
            fixed(row["mbiou"]),
        ]
        for _, row in shares.iterrows()
    ]
    header = ["level", "masks of", "pseudo-labels", *(f"{question} right" for question in QUESTIONS)]
    return markdown_table([*header, "mIoU", "mBIoU"], rows, text=(0, 1))


def quality_says(report: Quality) -> str:
    """The main numbers as a Markdown list."""
    return "\n".join([*_shares_say(report), *_scores_say(report), _corrections_say(report)])


def _shares_say(report: Quality) -> Iterator[str]:
    by = report.shares.set_index(["level", "masks of"])
    part = by.loc["part", "SAM"]["share"] if "part" in by.index else 0.0
    sam, refined = by.loc["all", "SAM"], by.loc["all", "refined"]
    yield (
        f"- {sam['coverage']:.0f} % of SAM's pseudo-labels cover one true mask, {sam['boundary']:.0f} % "
        "have its boundary "
        f"right, {sam['both']:.0f} % both; {part:.0f} % are parts."
    )
    changes = "; ".join(
        f"{row.level} {row.metric} {row.value:+.1f} ({row.low:+.1f} to {row.high:+.1f})"
        for row in report.changes.itertuples()
    )
    yield (
        f"- Refined: coverage {refined['coverage']:.0f} %, boundary {refined['boundary']:.0f} %, both "
        f"{refined['both']:.0f} %. {changes}."
    )


def _scores_say(report: Quality) -> Iterator[str]:
    tests = "; ".join(
        f"{SCORES[name]} {test.good:.3f} against {test.bad:.3f} (median), AUC {test.auc:.2f}, p = "
        f"{test.p:.2g}"
        for name, test in report.tests.items()
    )
    yield f"- Right against wrong ones: {tests}."
    errors = "; ".join(
        f"{where} {100 * before:.2f} and {100 * after:.2f} points"
        for where, (before, after) in report.errors.items()
    )
    yield f"- Calibration error of the certainty, before and after: {errors}."


def _corrections_say(report: Quality) -> str:
    parts = []
    for metric, values in report.advantages.items():
        best = max(values, key=values.get)
        others = ", ".join(f"{SCORES[name]} {values[name]:.2f}" for name in values if name != best)
        parts.append(f"for {metric} the lowest {SCORES[best]} (advantage {values[best]:.2f}; {others})")
    return f"- To correct first: {'; '.join(parts)}."


def write_quality(report: Quality, budget: str, folder: Path) -> list[Path]:
    """Write `shares.csv` and `quality.md` into ``folder``; ``budget`` ("medium") names the refinement
    module."""
    count, images = len(report.masks), report.masks["image"].nunique()
    text = (
        "# Quality of the pseudo-labels\n\n"
        f"Measured on {count:,} pseudo-labels of {images} unlabeled images of the micro world, whose truth "
        "is known; in place "
        f"of the paper's human study (Figures 44-47). Refined by the module of FT-{budget.title()}. In "
        "brackets: 95 % "
        "intervals, bootstrap over images.\n\n"
        f"{shares_markdown(report.shares)}\n\n{quality_says(report)}\n"
    )
    path = Path(folder) / "quality.md"
    write_text(path, text)
    return [write_csv(report.shares, Path(folder) / "shares.csv"), path]
