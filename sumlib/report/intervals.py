"""Paired cluster bootstrap over test images: intervals for differences of runs in any task group, prompt, round and metric.

Images are drawn with replacement within each data set; all masks of a drawn image come along, for all runs alike. The statistic is recomputed as in
`sumlib.report.results`: mean over masks, then over data sets. The intervals say what other test images would have given; the spread over seeds, what other trainings would.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sumlib.report.resampling import Estimate, interval
from sumlib.report.results import METRICS, TASKS

Model = tuple[str, str]  # (model, train_set), e.g. ("SUM", "FT-Medium")
_KEYS = ["run", "prompt", "setting", "round", "dataset", "image"]


class MissingRun(ValueError):
    """A run that is needed for a comparison was not evaluated there."""


class Bootstrap:
    """Intervals for linear contrasts of runs. One set of resamples, drawn once, serves all contrasts.

    `results`: per-mask rows as `sumlib.report.results.load_results`; `generator` draws the resamples.
    """

    def __init__(self, results: pd.DataFrame, generator: np.random.Generator, resamples: int = 2000):
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
        self._counts = {
            name: generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
            for name, n in images.items()
        }  # (R, images)

    def weights(self, where: str | Mapping[str, float]) -> dict[str, float]:
        """Weights of the data sets in a task group's mean, in the mean over "all" data sets, of one data set, or as given."""
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
        """Estimate of the sum over `runs` of weight x score, in points. `where`: a task group, "all", a data set, or weights of data sets.

        Raises MissingRun where a run has no such results and ValueError where runs were not evaluated on the same masks.
        """
        value, samples = 0.0, 0.0
        for dataset, weight in self.weights(where).items():
            sums, masks = self._weighted(runs, dataset, (prompt, setting, rounds), METRICS[metric])
            counts = self._counts[dataset]
            value += 100 * weight * sums.sum() / masks.sum()
            samples = samples + 100 * weight * (counts @ sums) / (counts @ masks)
        return interval(value, samples)

    def compare(self, models: Mapping[Model, float], where: str | Mapping[str, float], **point) -> Estimate:
        """`contrast` of models instead of runs: the mean over each model's seeds, with the contrast's value for each seed.

        A model with a single run (SAM, or an ablation of one seed) stands against every seed of the others. No seeds are given where all models have one run.
        Seeds that were not evaluated at this point (another first prompt, say) are left out.
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
        seeds = []
        for seed in sorted(set.intersection(*several)) if several else []:
            chosen = {
                used[model].get(seed, next(iter(used[model].values()))): weight
                for model, weight in models.items()
            }
            seeds.append(self._value(chosen, where, **point))
        return Estimate(whole.value, whole.low, whole.high, tuple(seeds))

    def _evaluated(
        self, model: Model, *, prompt: str, rounds: int, setting: str = "oracle", **_
    ) -> dict[int, str]:
        """Seed -> run of those evaluated at this point; all of them if none was, so that the first one missing is named."""
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
                    f"run {run} was evaluated on other masks of {dataset} than the other runs: repeat it with `dvc repro evaluate@{run}`"
                )
            total = total + weight * part[column]
        return total, masks

    def _images(self, key: tuple, dataset: str) -> dict[str, np.ndarray]:
        """Per image (images,), in the order of the names: "iou" and "biou" summed over its masks, and the number of "masks"."""
        if (key, dataset) not in self._cache:
            try:
                part = self._sums[key].loc[dataset]
            except KeyError:
                run, *point = key
                raise MissingRun(
                    f"run {run} has no results for {', '.join(map(str, point))} on {dataset}: run `dvc repro evaluate@{run}`"
                ) from None
            self._cache[key, dataset] = {
                name: part[name].to_numpy(np.float64) for name in ("iou", "biou", "masks")
            }
        return self._cache[key, dataset]


def paired_difference(
    results: pd.DataFrame,
    run_a: str,
    run_b: str,
    *,
    where: str,
    prompt: str,
    rounds: int,
    metric: str,
    generator: np.random.Generator,
    resamples: int = 2000,
) -> Estimate:
    """95 % interval of run_a - run_b in points; see `Bootstrap.contrast`."""
    both = results[results["run"].isin([run_a, run_b])]
    return Bootstrap(both, generator, resamples).contrast(
        {run_a: 1.0, run_b: -1.0}, where, prompt=prompt, rounds=rounds, metric=metric
    )
