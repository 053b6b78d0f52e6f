"""Per-mask results and their averages.

Per-mask results come as one Parquet file per run with the columns `COLUMNS`; scores leave this module in
points (0-100). Averages follow docs/method.md section 8: over masks, then over the data sets of a task group;
"all" is the mean over the data sets of all groups.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sumlib.data.groups import TASK_GROUPS
from sumlib.data.tasks import TASKS

METRICS = {"mIoU": "iou", "mBIoU": "biou"}
COLUMNS = (
    "run",
    "model",
    "train_set",
    "seed",
    "task",
    "dataset",
    "image",
    "mask",
    "prompt",
    "setting",
    "round",
    "iou",
    "biou",
)
_RUN = ["run", "model", "train_set", "seed"]
_POINT = ["prompt", "setting", "rounds", "metric"]


def dataset_order() -> dict[str, list[str]]:
    """The test sets of the registry by task group; the paper's 14 in its own order."""
    return {task: list(TASK_GROUPS[task]) for task in TASKS}


def evaluation(run: str, train_set: str) -> str:
    """The stage that evaluates a run of a fine-tuning set; "none" is that of baselines.

    >>> evaluation("sum-small", "FT-Small"), evaluation("sam", "none")
    ('evaluate@sum-small', 'evaluate_baseline@sam')
    """
    return f"evaluate_baseline@{run}" if train_set == "none" else f"evaluate@{run}"


def load_results(folder: Path) -> pd.DataFrame:
    """Per-mask results of every run in ``folder`` (`<run>.parquet`), in the order of the file names.

    Raises FileNotFoundError where there is no file, ValueError where one is not a complete result of its run
    or runs differ in their data sets.
    """
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no <run>.parquet: run `dvc repro` (stage evaluate) first")
    frames = []
    for path in paths:
        frame = pd.read_parquet(path)
        own = "train_set" in frame and set(frame["run"]) == {path.stem}
        stage = evaluation(path.stem, frame["train_set"].iloc[0] if own else "")
        remedy = f"repeat it with `dvc repro {stage}`"
        if missing := [column for column in COLUMNS if column not in frame]:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}: {remedy}")
        if set(frame["run"]) != {path.stem}:
            raise ValueError(f"{path} holds the run(s) {sorted(set(frame['run']))}: {remedy}")
        frames.append(frame[list(COLUMNS)])
    results = pd.concat(frames, ignore_index=True)
    for column in ("run", "model", "train_set", "task", "dataset", "image", "prompt", "setting"):
        results[column] = results[column].astype("category")
    _check_complete(results)
    return results


def _check_complete(results: pd.DataFrame) -> None:
    datasets = set(results["dataset"])
    for (run, prompt, setting), part in results.groupby(
        ["run", "prompt", "setting"], observed=True, sort=True
    ):
        if absent := sorted(datasets - set(part["dataset"])):
            raise ValueError(
                f"run {run} ({prompt}, {setting}) has no result on {', '.join(absent)}: "
                f"repeat it with `dvc repro {evaluation(run, part['train_set'].iloc[0])}`"
            )
    if not np.isfinite(results[["iou", "biou"]].to_numpy()).all():
        raise ValueError("an IoU is not a number: repeat the stage evaluate")


def aggregate(results: pd.DataFrame) -> pd.DataFrame:
    """Mean scores in points.

    Columns: run, model, train_set, seed, task, dataset, prompt, setting, rounds, metric, value, masks. One
    row per data set (mean over masks), per task group (dataset "average") and over all data sets (task "all",
    dataset "average").
    """
    keys = [*_RUN, "task", "dataset", "prompt", "setting", "round"]
    columns = results.astype({"iou": np.float64, "biou": np.float64})
    means = (
        columns.groupby(keys, observed=True)
        .agg(mIoU=("iou", "mean"), mBIoU=("biou", "mean"), masks=("iou", "size"))
        .reset_index()
    )
    means = means.rename(columns={"round": "rounds"}).astype(
        dict.fromkeys(("run", "model", "train_set", "task", "dataset", "prompt", "setting"), str)
    )
    scores = means.melt(
        [*_RUN, "task", "dataset", "prompt", "setting", "rounds", "masks"], list(METRICS), "metric", "value"
    )
    scores["value"] *= 100
    groups = (
        scores.groupby([*_RUN, "task", *_POINT])
        .agg(value=("value", "mean"), masks=("masks", "sum"))
        .reset_index()
    )
    everything = (
        scores.groupby([*_RUN, *_POINT]).agg(value=("value", "mean"), masks=("masks", "sum")).reset_index()
    )
    scores = pd.concat(
        [scores, groups.assign(dataset="average"), everything.assign(task="all", dataset="average")],
        ignore_index=True,
    )
    return _sort(scores)[[*_RUN, "task", "dataset", *_POINT, "value", "masks"]]


def _sort(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the paper: task group, its data sets, its average last."""
    datasets = [name for names in dataset_order().values() for name in names]
    rank = {name: index for index, name in enumerate([*TASKS, "all", *datasets, "average", *METRICS])}
    order = ["run", "prompt", "setting", "rounds", "metric", "task", "dataset"]
    ranked = {"task", "dataset", "metric"}
    return scores.sort_values(
        order,
        key=lambda c: c.map(lambda v: (rank.get(v, 999), str(v))) if c.name in ranked else c,
        kind="stable",
        ignore_index=True,
    )


def over_seeds(scores: pd.DataFrame, setting: str = "oracle") -> pd.DataFrame:
    """Mean over the seeds of a model.

    Columns: model, train_set, task, dataset, prompt, rounds, metric, ours, sd (points; NaN for one seed),
    seeds.
    """
    keys = ["model", "train_set", "task", "dataset", "prompt", "rounds", "metric"]
    of_setting = scores[scores["setting"] == setting]
    return (
        of_setting.groupby(keys, sort=False)["value"].agg(ours="mean", sd="std", seeds="size").reset_index()
    )
