"""Intervals by bootstrap over images: every mask comes along with its image.

`resample` draws the images; all intervals of the reports come from it. `Bootstrap` is the paired one over
test sets: images are drawn with replacement within each data set, the same images for all runs, and the
statistic is computed again as in `sumlib.report.results`: mean over masks, then over data sets. Its intervals
say what other test images would have given; the spread over seeds says what other trainings would.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sumlib.report.results import METRICS, TASKS, evaluation

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A measured quantity and its 95 % interval ``low``..``high``."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()
    """Its value for each seed; empty where no model has more than one."""
    trainings: int = 1
    """Of the model that was trained least often: one training against three is one, whatever ``seeds``
    holds."""


def resample(
    images: int, generator: np.random.Generator, resamples: int = RESAMPLES, *, one_by_one: bool = False
) -> np.ndarray:
    """How often each image is drawn with replacement, (resamples, images) float64; each row adds up to
    ``images``.

    ``one_by_one`` draws image after image in place of the counts: equally likely draws by other random
    numbers, which the published intervals of `sumlib.analysis.rims` come from.
    """
    if one_by_one:
        drawn = generator.integers(0, images, (resamples, images))
        return np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.float64)
    return generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)


def interval(value: float, samples: np.ndarray) -> Estimate:
    """``value`` with the middle 95 % of ``samples`` (R,)."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def share_interval(
    values: np.ndarray, images: Sequence[str], generator: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Mean of ``values`` (one a mask) with its 95 % interval: value, low, high; all masks of an image are
    drawn together."""
    sums = (
        pd.DataFrame({"image": images, "value": np.asarray(values, float)})
        .groupby("image", sort=False)["value"]
        .agg(["sum", "size"])
        .to_numpy(float)
    )
    weights = resample(len(sums), generator, resamples)
    means = (weights @ sums[:, 0]) / (weights @ sums[:, 1])
    mean = interval(sums[:, 0].sum() / sums[:, 1].sum(), means)
    return mean.value, mean.low, mean.high


def ratio_difference(
    top: np.ndarray, bottom: np.ndarray, *, generator: np.random.Generator, resamples: int = RESAMPLES
) -> Estimate:
    """Difference of two pooled shares in points.

    ``top``, ``bottom``: (images, 2) counts; the value is 100 x (sum top_0 / sum bottom_0 - sum top_1 / sum
    bottom_1). An empty denominator in a resample counts as 0.
    """
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    counts = resample(len(top), generator, resamples)
    shares = (counts @ top) / np.maximum(counts @ bottom, 1e-12)  # (R, 2)
    whole = top.sum(0) / np.maximum(bottom.sum(0), 1e-12)
    return interval(100 * (whole[0] - whole[1]), 100 * (shares[:, 0] - shares[:, 1]))


def image_draw(
    names: Sequence[str], generator: np.random.Generator, resamples: int = RESAMPLES
) -> Callable[[np.ndarray, Sequence[str]], np.ndarray]:
    """One set of resamples of the images ``names``, for several statistics.

    Gives a function (per-mask values (M,), their images (M,)) -> means (R,) over the drawn images' masks.
    """
    counts = resample(len(names), generator, resamples)
    index = {name: i for i, name in enumerate(names)}

    def means(values: np.ndarray, images: Sequence[str]) -> np.ndarray:
        at = [index[image] for image in images]
        return (counts @ np.bincount(at, values, len(names))) / np.maximum(
            counts @ np.bincount(at, minlength=len(names)), 1
        )

    return means


# ---- paired, over test sets
# ----------------------------------------------------------------------------------------------

Model = tuple[str, str]  # (model, train_set), e.g. ("SUM", "FT-Medium")
_KEYS = ["run", "prompt", "setting", "round", "dataset", "image"]


class MissingRun(ValueError):
    """A run that is needed for a comparison was not evaluated there."""


class Bootstrap:
    """Intervals for linear contrasts of runs. One set of resamples, drawn once, serves all contrasts.

    `results`: per-mask rows as `sumlib.report.results.load_results`; `generator` draws the resamples.
    """

    def __init__(self, results: pd.DataFrame, generator: np.random.Generator, resamples: int = RESAMPLES):
        columns = results.astype({"iou": np.float64, "biou": np.float64})
        sums = columns.groupby(_KEYS, observed=True).agg(
            iou=("iou", "sum"), biou=("biou", "sum"), masks=("mask", "size")
        )
        self._sums = {
            key: part.droplevel(_KEYS[:4]) for key, part in sums.groupby(level=_KEYS[:4], observed=True)
        }
        self._cache: dict[tuple, dict[str, np.ndarray]] = {}
        runs = results[["run", "model", "train_set", "seed"]].drop_duplicates().sort_values("run")
        self.runs: dict[Model, dict[int, str]] = {}
        self._stages = {row.run: evaluation(row.run, row.train_set) for row in runs.itertuples()}
        for row in runs.itertuples():
            self.runs.setdefault((row.model, row.train_set), {})[int(row.seed)] = row.run
        pairs = results[["task", "dataset"]].drop_duplicates()
        self.groups = {task: sorted(pairs.loc[pairs["task"] == task, "dataset"]) for task in TASKS}
        images = (
            results[["dataset", "image"]]
            .drop_duplicates()
            .groupby("dataset", observed=True)
            .size()
            .sort_index()
        )
        self._counts = {name: resample(n, generator, resamples) for name, n in images.items()}  # (R, images)

    def weights(self, where: str | Mapping[str, float]) -> dict[str, float]:
        """Weights of the data sets in a task group's mean, in the mean over "all" data sets, of one data set,
        or as given."""
        if not isinstance(where, str):
            return dict(where)
        names = self.groups.get(where) or (
            [name for group in self.groups.values() for name in group] if where == "all" else [where]
        )
        return {name: 1 / len(names) for name in names}

    def contrast(
        self,
        runs: Mapping[str, float],
        where: str | Mapping[str, float],
        *,
        prompt: str,
        rounds: int,
        metric: str,
        setting: str = "oracle",
    ) -> Estimate:
        """Estimate of the sum over ``runs`` of weight x score, in points.

        ``where``: a task group, "all", a data set, or weights of data sets. Raises MissingRun where a run has
        no such results and ValueError where runs were not evaluated on the same masks.
        """
        value, samples = 0.0, 0.0
        for dataset, weight in self.weights(where).items():
            sums, masks = self._weighted(runs, dataset, (prompt, setting, rounds), METRICS[metric])
            counts = self._counts[dataset]
            value += 100 * weight * sums.sum() / masks.sum()
            samples = samples + 100 * weight * (counts @ sums) / (counts @ masks)
        return interval(value, samples)

    def compare(self, models: Mapping[Model, float], where: str | Mapping[str, float], **point) -> Estimate:
        """`contrast` of models instead of runs: the mean over each model's seeds, with the contrast's value
        for each seed.

        A model with a single run (SAM, or an ablation of one seed) stands against every seed of the others;
        if it was trained, the comparison is one of one training (`Estimate.trainings`). No seeds are given
        where all models have one run. Seeds that were not evaluated at this point (another first prompt, say)
        are left out.
        """
        for model in models:
            if model not in self.runs:
                raise MissingRun(f"{' '.join(model)} was not evaluated: run `dvc repro evaluate`")
        used = {model: self._evaluated(model, **point) for model in models}
        means = {
            run: weight / len(used[model]) for model, weight in models.items() for run in used[model].values()
        }
        whole = self.contrast(means, where, **point)
        several = [set(seeds) for seeds in used.values() if len(seeds) > 1]
        values = []
        for seed in sorted(set.intersection(*several)) if several else []:
            runs = {
                used[model].get(seed, next(iter(used[model].values()))): weight
                for model, weight in models.items()
            }
            values.append(self._value(runs, where, **point))
        once = any(len(seeds) == 1 for (_, train_set), seeds in used.items() if train_set != "none")
        trainings = 1 if once else max(1, len(values))
        return Estimate(whole.value, whole.low, whole.high, tuple(values), trainings)

    def _evaluated(
        self, model: Model, *, prompt: str, rounds: int, setting: str = "oracle", **_
    ) -> dict[int, str]:
        """Seed -> run of those evaluated at this point; all of them if none was, so that the first one
        missing is named."""
        found = {
            seed: run
            for seed, run in self.runs[model].items()
            if (run, prompt, setting, rounds) in self._sums
        }
        return found or self.runs[model]

    def _value(self, runs, where, *, prompt, rounds, metric, setting="oracle") -> float:
        value = 0.0
        for dataset, weight in self.weights(where).items():
            sums, masks = self._weighted(runs, dataset, (prompt, setting, rounds), METRICS[metric])
            value += 100 * weight * sums.sum() / masks.sum()
        return float(value)

    def _weighted(self, runs, dataset, point, column) -> tuple[np.ndarray, np.ndarray]:
        """Per image (images,): the weighted sum over runs of the masks' scores, and the number of masks."""
        total, masks = 0.0, None
        for run, weight in runs.items():
            part = self._images((run, *point), dataset)
            masks = part["masks"] if masks is None else masks
            same = (
                len(masks) == len(part["masks"]) == self._counts[dataset].shape[1]
                and (masks == part["masks"]).all()
            )
            if not same:
                raise ValueError(
                    f"run {run} was evaluated on other masks of {dataset} than the other runs: repeat it "
                    f"with `dvc repro {self._stages[run]}`"
                )
            total = total + weight * part[column]
        return total, masks

    def _images(self, key: tuple, dataset: str) -> dict[str, np.ndarray]:
        """Per image (images,), in the order of the names: "iou" and "biou" summed over its masks, and the
        number of "masks"."""
        if (key, dataset) not in self._cache:
            try:
                part = self._sums[key].loc[dataset]
            except KeyError:
                run, *point = key
                raise MissingRun(
                    f"run {run} has no results for {', '.join(map(str, point))} on {dataset}: "
                    f"run `dvc repro {self._stages.get(run, f'evaluate@{run}')}`"
                ) from None
            self._cache[key, dataset] = {
                name: part[name].to_numpy(np.float64) for name in ("iou", "biou", "masks")
            }
        return self._cache[key, dataset]
