"""The model that a command computes with: any file that the repository reads."""

from collections.abc import Mapping
from pathlib import Path

import torch

from sumlib.base.device import best_device
from sumlib.data.tasks import Task
from sumlib.model.checkpoint import OFFICIAL, read_metadata
from sumlib.model.export import import_model
from sumlib.model.sum import Sum
from sumlib.pipeline.commands.common import UsageError, note

WHERE = (
    "Models come from https://dl.fbaipublicfiles.com/segment_anything/, SAM's own "
    f"({', '.join(OFFICIAL.values())}), or from a fine-tuning: `make repro` leaves the micro world's in "
    "artifacts/finetune/, such as sum-medium.safetensors"
)


def open_model(path: Path | None, device: str | None = None, base: Path | None = None) -> tuple[Sum, dict]:
    """The model of a file in evaluation mode on a device, and the file's metadata.

    ``base`` is the checkpoint that an adapter file was made for; other files need none. Raises:
        UsageError: no file is named or there is none, or the device is not there.
        CheckpointError: the file is broken or of a model that is not known.
    """
    if path is None:
        raise UsageError(f"name a model with --model. {WHERE}")
    if not path.exists():
        raise UsageError(f"{path}: there is no such model. {WHERE}")
    place = open_device(device)
    notes = read_metadata(path) if path.suffix == ".safetensors" else {}
    if notes.get("form") != "adapter":
        base = None
    elif base is None:
        raise UsageError(f"{path}: holds only what training changed; name its checkpoint with --base")
    return import_model(path, base).eval().to(place), notes


def task_of(name: str | None, model: Sum, notes: Mapping) -> int | None:
    """The id of a task by its name or number; ``notes`` are the model's metadata, whose "tasks" may name its
    own.

    Raises:
        UsageError: the model has no such task.
    """
    if name is None:
        return None
    known = list(notes.get("tasks") or (task.title for task in Task))[: len(model.task_vectors)]
    if name in known:
        task = known.index(name)
    elif name.isdecimal() and int(name) < len(model.task_vectors):
        task = int(name)
    else:
        last = len(model.task_vectors) - 1
        raise UsageError(f"--task: the model has no task {name!r}; known are {', '.join(known)}, 0 to {last}")
    if task and not model.task_vectors[task].any():
        note(f"note: this model has learned nothing for the task {name!r}, so --task changes nothing")
    return task


def open_device(name: str | None) -> torch.device:
    """The device ``name``, by default the best one. Raises UsageError if it is not there."""
    if name is None:
        return best_device()
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: cannot compute there ({reason}); --device cpu can") from None
