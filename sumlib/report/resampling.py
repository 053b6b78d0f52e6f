"""Resampling of images: intervals for means and shares of masks, which come along with their image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A measured quantity: `value` and its 95 % interval `low`..`high`, and its value for each seed (empty where there are no seeds)."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()


def ratio_difference(
    top: np.ndarray, bottom: np.ndarray, *, generator: np.random.Generator, resamples: int = 2000
) -> Estimate:
    """Difference of two pooled shares in points, with images as the unit of resampling.

    `top`, `bottom`: (images, 2) counts; the value is 100 x (sum top_0 / sum bottom_0 - sum top_1 / sum bottom_1). An empty denominator in a resample counts as 0.
    """
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    counts = generator.multinomial(len(top), np.full(len(top), 1 / len(top)), size=resamples).astype(
        np.float64
    )
    shares = (counts @ top) / np.maximum(counts @ bottom, 1e-12)  # (R, 2)
    whole = top.sum(0) / np.maximum(bottom.sum(0), 1e-12)
    return interval(100 * (whole[0] - whole[1]), 100 * (shares[:, 0] - shares[:, 1]))


def interval(value: float, samples: np.ndarray) -> Estimate:
    """`value` with the middle 95 % of `samples` (R,)."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def image_draw(
    names: Sequence[str], generator: np.random.Generator, resamples: int = 2000
) -> Callable[[np.ndarray, Sequence[str]], np.ndarray]:
    """One set of resamples of the images `names`; gives a function (per-mask values (M,), their images (M,)) -> means (R,) over the drawn images' masks."""
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples).astype(
        np.float64
    )
    index = {name: i for i, name in enumerate(names)}

    def means(values: np.ndarray, images: Sequence[str]) -> np.ndarray:
        at = [index[image] for image in images]
        return (counts @ np.bincount(at, values, len(names))) / np.maximum(
            counts @ np.bincount(at, minlength=len(names)), 1
        )

    return means
