"""Held-out masks of a project: every model answers the same clicks, and models are compared mask by mask."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from sumlib.base.progress import with_bar
from sumlib.data.dataset import Dataset, Sample
from sumlib.evaluate import interact
from sumlib.model.sum import Sum
from sumlib.report.intervals import share_interval

ROUNDS = (1, 3, 6)
"""Clicks after which masks are scored."""
METRICS = {"mIoU": "iou", "mBIoU": "biou"}
KEYS = ["dataset", "image", "mask", "round"]
FEW = 5
"""Images below which an interval over images says too little to be shown."""
_CHUNK_PIXELS = 2**25  # masks are decoded together up to this many pixels


def evaluate_own(
    models: Mapping[str, Sum],
    dataset: Dataset,
    *,
    rounds: Sequence[int] = ROUNDS,
    setting: str = "oracle",
    tasks: Mapping[int, str] | None = None,
    limit_images: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of every mask of the good samples of ``dataset``, for each model, after the given clicks.

    The protocol is that of docs/method.md section 8: the first click is the mask's innermost pixel, each
    further one the innermost pixel of the largest error; of the first answer the best of three outputs counts
    (``setting`` of `sumlib.evaluate.interact`). The model is told the sample's task in the first round, if it
    has learnt a vector for it, else that the task is unspecified.

    ``tasks`` names the ids. A row for each model, mask and round: model, dataset, task, image, mask, round,
    iou, biou, photo; the last is the same for samples of the same picture (one a task, say), which are drawn
    together in all intervals. Raises ValueError if no sample can be used.
    """
    good = dataset.good()
    count = len(good) if limit_images is None else min(limit_images, len(good))
    if not count:
        why = f": {dataset.bad[0].path}: {dataset.bad[0].reason}" if dataset.bad else ""
        raise ValueError(f"{dataset.name}: none of its {len(dataset)} samples can be evaluated{why}")
    rows = []
    for model in models.values():
        model.eval()
    for index in with_bar(range(count), f"evaluate {dataset.name}", progress):
        sample = good[index]
        title = (tasks or {}).get(int(sample.task)) or getattr(sample.task, "title", str(sample.task))
        for name, model in models.items():
            part = _scores(model, sample, rounds, setting)
            same = {
                "dataset": dataset.name,
                "task": title,
                "image": sample.name,
                "photo": photo(sample.image),
            }
            rows.append(part.assign(model=name, **same))
    columns = ["model", "dataset", "task", "image", "mask", "round", "iou", "biou", "photo"]
    return pd.concat(rows, ignore_index=True)[columns]


def photo(image: np.ndarray) -> str:
    """A mark of a picture (H, W, 3) uint8 by its content."""
    return f"{image.shape[1]}x{image.shape[0]}-{zlib.crc32(np.ascontiguousarray(image)):08x}"


def task_of(model: Sum, task: int) -> int:
    """The id that the model is told: ``task`` where it has learnt a vector for it, else 0, unspecified."""
    known = 0 <= task < len(model.task_vectors)
    return int(task) if known and bool(model.task_vectors[int(task)].any()) else 0


@torch.no_grad()
def _scores(model: Sum, sample: Sample, rounds: Sequence[int], setting: str) -> pd.DataFrame:
    """Rows of one image: mask, round, iou, biou."""
    embedding = model.encode(model.preprocess(sample.image)[None])
    count, height, width = sample.masks.shape
    parts = []
    for numbers in torch.arange(count).split(max(1, _CHUNK_PIXELS // (height * width))):
        answers = interact(
            model,
            embedding,
            torch.zeros(len(numbers), dtype=torch.long),
            torch.from_numpy(sample.masks[numbers.numpy()]),
            prompt="point",
            setting=setting,
            rounds=max(rounds),
            task=task_of(model, int(sample.task)),
            task_rounds="first",
        )
        for number in rounds:
            iou, biou = (score.float().cpu().numpy() for score in answers[number - 1])
            parts.append(pd.DataFrame({"mask": numbers.numpy(), "round": number, "iou": iou, "biou": biou}))
    return pd.concat(parts, ignore_index=True)


# ---- what they say ------------------------------------------------------------------------------


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Means in points with 95 % intervals over images: model, round, metric, value, low, high, masks, images.

    Models and rounds in the order of the table.
    """
    rows = []
    for (model, number), part in table.groupby(["model", "round"], sort=False):
        for metric, column in METRICS.items():
            value, low, high = _interval(part[column], part)
            rows.append(
                {"model": model, "round": number, "metric": metric, "value": value, "low": low, "high": high}
                | _counts(part)
            )
    return pd.DataFrame(rows)


def compared(table: pd.DataFrame, model: str, other: str) -> pd.DataFrame:
    """``model`` minus ``other`` in points, paired by mask, with 95 % intervals by bootstrap over images.

    Columns: round, metric, value, low, high, masks, images, better, worse (masks whose score rose or fell by
    more than 5 points). Raises ValueError where a model is missing or they were scored on other masks.
    """
    names = list(table["model"].unique())
    if missing := [one for one in (model, other) if one not in names]:
        raise ValueError(f"{missing[0]} was not evaluated; there are {', '.join(names)}")
    first, second = (table[table["model"] == one] for one in (model, other))
    pairs = first.merge(
        second[[*KEYS, "iou", "biou"]], on=KEYS, suffixes=("", "_other"), validate="one_to_one"
    )
    if not len(pairs) == len(first) == len(second):
        raise ValueError(f"{model} and {other} were evaluated on other masks: evaluate both again")
    rows = []
    for number, part in pairs.groupby("round", sort=True):
        for metric, column in METRICS.items():
            change = part[column].astype(float) - part[f"{column}_other"]
            value, low, high = _interval(change, part)
            counts = {"better": int((change > 0.05).sum()), "worse": int((change < -0.05).sum())}
            rows.append(
                {"round": number, "metric": metric, "value": value, "low": low, "high": high}
                | _counts(part)
                | counts
            )
    return pd.DataFrame(rows)


def _interval(values: pd.Series, part: pd.DataFrame) -> tuple[float, float, float]:
    """In points; without bounds (NaN) for fewer than `FEW` images."""
    photos = part["photo"]
    value, low, high = share_interval(100 * values.astype(float), photos, np.random.default_rng(0))
    return (value, low, high) if photos.nunique() >= FEW else (value, np.nan, np.nan)


def _counts(part: pd.DataFrame) -> dict[str, int]:
    return {"masks": len(part), "images": part["photo"].nunique()}
