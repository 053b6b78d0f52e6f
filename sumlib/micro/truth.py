"""The true masks of the micro SA-1B, for analysis only: nothing that trains or selects pseudo-labels imports
this."""

from functools import partial
from pathlib import Path

from sumlib.data.dataset import Dataset
from sumlib.data.layouts.coco import coco
from sumlib.data.tasks import Task

TRUTH_FOLDER = "SA-1B-truth"
LEVELS = {task.title: task for task in Task if task}
"""Kinds of mask by name, as the columns of results have them."""


def open_truth(root: Path) -> dict[str, Dataset]:
    """Level ("salient", "entity", "part") -> the images of `root/SA-1B` with their true masks of that level.

    Images that have no mask of a level are no members. Raises FileNotFoundError if the truth is not there
    (the real SA-1B has none).
    """
    read = partial(coco, Path(root), images="SA-1B/sa_000000", keep=_all)
    return {
        level: Dataset(f"{TRUTH_FOLDER}-{level}", task, read(f"{TRUTH_FOLDER}/{level}.json"))
        for level, task in LEVELS.items()
    }


def _all(annotation: dict) -> bool:
    return True
