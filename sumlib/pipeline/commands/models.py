"""The model that a command computes with: any file that the repository reads."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from sumlib.base.device import best_device
from sumlib.data.tasks import Task
from sumlib.model.checkpoint import OFFICIAL, load_sam, load_sum, read_metadata
from sumlib.model.micro_sam import MICRO_DEPTHS
from sumlib.model.sum import Sum
from sumlib.pipeline.commands.common import UsageError, note

WHERE = (
    "Models come from https://dl.fbaipublicfiles.com/segment_anything/, SAM's own "
    f"({', '.join(OFFICIAL.values())}), or from a fine-tuning: `make repro` leaves the micro world's in "
    "artifacts/finetune/, such as sum-medium.safetensors"
)
WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Width of the image encoder of SAM's own models."""
MICRO_WIDTH = 128


def open_model(path: Path | None, device: str | None = None) -> tuple[Sum, dict]:
    """The model of a file in evaluation mode on a device, and the file's metadata.

    Raises:
        UsageError: no file is named or there is none, or the device is not there.
        CheckpointError: the file is broken or of a model that is not known.
    """
    if path is None:
        raise UsageError(f"name a model with --model. {WHERE}")
    if not path.exists():
        raise UsageError(f"{path}: there is no such model. {WHERE}")
    place = open_device(device)
    notes = read_metadata(path) if path.suffix == ".safetensors" else {}
    return _read(path).eval().to(place), notes


def _read(path: Path) -> Sum:
    shapes = _shapes(path)
    if shapes is None:
        return Sum(load_sam("vit_b", path))  # which says what is wrong with the file
    if "task_prompt.weight" in shapes:
        return load_sum(path)
    if kind := sam_type(shapes):
        return Sum(load_sam(kind, path))
    from sumlib.model.export import import_model  # files of others

    return import_model(path)


def _shapes(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Shapes of a checkpoint's tensors without reading them; {} for a folder, None for what is broken."""
    if path.is_dir():
        return {}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
        return {key: tuple(value.shape) for key, value in state.items()}
    except Exception:  # readers raise all sorts at damaged bytes
        return None


def sam_type(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Which SAM a checkpoint with tensors of these shapes is of, None if of none that `load_sam` reads.

    >>> sam_type({"image_encoder.pos_embed": (1, 64, 64, 768)})
    'vit_b'
    >>> sam_type({"image_encoder.pos_embed": (1, 64, 64, 768), "mask_decoder.hf_token.weight": (1, 256)})
    """
    if any("hf_" in key for key in shapes):  # HQ-SAM's own files
        return None
    width = shapes.get("image_encoder.pos_embed", (0,))[-1]
    if width == MICRO_WIDTH:
        blocks = {key.split(".")[2] for key in shapes if key.startswith("image_encoder.blocks.")}
        return next((name for name, depth in MICRO_DEPTHS.items() if depth == len(blocks)), None)
    return WIDTHS.get(width)


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
