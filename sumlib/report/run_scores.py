"""The scores of one run: its metrics file, and what the evaluation's notebook tells of it."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from sumlib.base.files import write_text
from sumlib.report.results import METRICS, TASKS
from sumlib.report.text import markdown_table


def run_metrics(scores: pd.DataFrame) -> dict[str, dict]:
    """Averages of task groups from `sumlib.report.results.aggregate` of one run.

    {prompt: {setting: {task group: {metric: {round: points}}}}}, rounded to 3 decimals.
    """
    metrics: dict[str, dict] = {}
    for row in _averages(scores).itertuples():
        group = metrics.setdefault(row.prompt, {}).setdefault(row.setting, {}).setdefault(row.task, {})
        group.setdefault(row.metric, {})[str(row.rounds)] = round(row.value, 3)
    return metrics


def _averages(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[(scores["dataset"] == "average") & (scores["task"] != "all")]


def write_metrics(scores: pd.DataFrame, path: Path) -> Mapping[str, dict]:
    """Write `run_metrics` as JSON to ``path``; give them."""
    metrics = run_metrics(scores)
    write_text(path, json.dumps(metrics, indent=1, sort_keys=True) + "\n")
    return metrics


def rounds_of(scores: pd.DataFrame, prompt: str, setting: str) -> pd.DataFrame:
    """Averages of one prompt and setting: rows (task, rounds), columns mIoU and mBIoU."""
    one = _averages(scores).query("prompt == @prompt and setting == @setting")
    return one.pivot(index=["task", "rounds"], columns="metric", values="value")[list(METRICS)]


def run_markdown(scores: pd.DataFrame, prompt: str, setting: str) -> str:
    """Group averages of one run by round, for people."""
    values = rounds_of(scores, prompt, setting)
    numbers = sorted(values.index.unique("rounds"))
    run = scores.iloc[0]
    rows = [
        [task, *(f"{values.loc[(task, number), metric]:.1f}" for metric in METRICS for number in numbers)]
        for task in TASKS
    ]
    header = ["task", *(f"{metric}, {number}" for metric in METRICS for number in numbers)]
    title = f"{run['model']}, {run['train_set']}, {prompt} first, {setting}: points by round"
    return f"{title}\n\n{markdown_table(header, rows)}"


def run_says(scores: pd.DataFrame, prompt: str, setting: str) -> str:
    """A line a task group: the scores at the first and at the last round."""
    values = rounds_of(scores, prompt, setting)
    last = max(values.index.unique("rounds"))
    lines = []
    for task in TASKS:
        start, end = values.loc[(task, 1)], values.loc[(task, last)]
        lines.append(
            f"- {task}: {start['mIoU']:.1f} mIoU and {start['mBIoU']:.1f} mBIoU at 1 point, "
            f"{end['mIoU']:.1f} and "
            f"{end['mBIoU']:.1f} at {last}"
        )
    return "\n".join(lines)
