"""Models on disk: `segment-anything`'s checkpoints and ours, written whole and checked when they are read."""

import hashlib
import json
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sumlib.base.files import whole
from sumlib.config.runs import method_names, nearest
from sumlib.model.adapters import adapter_width, add_adapters
from sumlib.model.micro_sam import MICRO_DEPTHS, build_sam_micro
from sumlib.model.sum import NUM_TASKS, Sum

OFFICIAL = {"vit_b": "sam_vit_b_01ec64.pth", "vit_l": "sam_vit_l_0b3195.pth", "vit_h": "sam_vit_h_4b8939.pth"}
"""SAM's own checkpoints, under https://dl.fbaipublicfiles.com/segment_anything/."""
UNNAMED = {"hq.token.weight": "hq_sam"}
"""Architectures of files whose metadata name none, by one of their weights."""
MODEL_TYPES = (*MICRO_DEPTHS, *OFFICIAL)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and the remedy."""


def load_sam(model_type: str, checkpoint: str | Path | None = None, *, sha256: str | None = None) -> Sam:
    """A SAM in evaluation mode, on the CPU, float32.

    Args:
        model_type: one of `MODEL_TYPES`.
        checkpoint: weights, ``.safetensors`` or ``.pth`` (SAM's own files); None gives random ones.
        sha256: what the file's SHA-256 must be, in hex; None: not checked.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, has another hash, or holds another architecture.
        ValueError: unknown model_type.
    """
    if checkpoint is None:
        return _build(model_type).eval()
    with torch.device("meta"):  # the shapes alone; the weights come from the file
        sam = _build(model_type)
    remedy = _remedy(model_type)
    state, _ = _read(Path(checkpoint), sha256, remedy)
    return _fill(sam, state, f"a SAM of model_type {model_type!r}", Path(checkpoint))


def save_sam(path: str | Path, sam: Sam, metadata: dict) -> None:
    """Write a SAM as safetensors, whole or not at all.

    ``metadata`` holds JSON values: "model_type", and how the weights were made. Equal weights and metadata
    give equal bytes.

    Raises:
        ValueError: the path does not end in .safetensors, or the model is none of ``metadata["model_type"]``.
    """
    _write(Path(path), sam, sam, metadata)


def load_sum(path: str | Path, *, sha256: str | None = None) -> Sum:
    """A `Sum` that `save_sum` wrote, with its task prompt; its metadata are read with `read_metadata`.

    Raises: as `load_sam`.
    """
    path = Path(path)
    state, metadata = _read(path, sha256, "make it again with `dvc repro`")
    model_type = metadata.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: not written by save_sum: its metadata name no known model_type; {_kind(_shapes(state))}"
        )
    tasks = len(state.get("task_prompt.weight", range(NUM_TASKS)))
    architecture = _architecture(path, metadata.get("architecture"), state)
    with torch.device("meta"):
        model = architecture(_build(model_type), tasks)
        if width := metadata.get("adapter_width"):
            add_adapters(model.sam.image_encoder, width)
    return _fill(model, state, f"a SUM of model_type {model_type!r}", path)


def save_sum(path: str | Path, model: Sum, metadata: dict) -> None:
    """Write a `Sum` with its task prompt, adapters and what its architecture adds; see `save_sam`."""
    name = {"architecture": model.architecture} if model.architecture else {}
    _write(Path(path), model, model.sam, metadata | name)


def read_metadata(path: str | Path) -> dict:
    """The ``metadata`` that `save_sam` or `save_sum` wrote; {} for files of others. Raises: as `load_sam`."""
    return _read(Path(path), None, "make it again with `dvc repro`", weights=False)[1]


def build_like(sam: Sam) -> Sam:
    """A SAM of the same architecture with fresh weights.

    Raises ValueError if it is none of `MODEL_TYPES`.
    """
    shapes = _plain(_shapes(sam.state_dict()))
    for model_type in MODEL_TYPES:
        if shapes == _sam_shapes(model_type):
            return _build(model_type)
    raise ValueError(_kind(shapes))


def _architecture(path: Path, name: str | None, state: dict[str, Tensor]) -> type[Sum]:
    """The class that metadata ``name``; files from before there were names are known by their weights."""
    if name is None:
        name = next((name for key, name in UNNAMED.items() if key in state), None)
    if name is None:
        return Sum
    known = method_names()
    module = import_module(f"sumlib.methods.{name}") if name in known else None
    if not hasattr(module, "ARCHITECTURE"):
        raise CheckpointError(
            f"{path}: its architecture {name!r} is in no file of sumlib/methods/; the nearest are: "
            f"{nearest(name, known)}; write the file again, or bring its method back"
        )
    return module.ARCHITECTURE


def _build(model_type: str) -> Sam:
    if model_type not in MODEL_TYPES:
        raise ValueError(f"unknown model_type {model_type!r}; known are {', '.join(MODEL_TYPES)}")
    return (
        build_sam_micro(depth=MICRO_DEPTHS[model_type])
        if model_type in MICRO_DEPTHS
        else sam_model_registry[model_type]()
    )


def _remedy(model_type: str) -> str:
    if model_type in MICRO_DEPTHS:
        rebuild = "rebuild it with notebooks/foundation.ipynb"
        return f"restore the one that ships with `dvc repro data.dvc`, or {rebuild}"
    return f"download it (again) from https://dl.fbaipublicfiles.com/segment_anything/{OFFICIAL[model_type]}"


def _read(
    path: Path, sha256: str | None, remedy: str, weights: bool = True
) -> tuple[dict[str, Tensor], dict]:
    """State dictionary and metadata of a checkpoint; without ``weights`` the former is empty."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint; {remedy}")
    if sha256 is not None:
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256.strip().lower():
            raise CheckpointError(
                f"{path}: its SHA-256 is {actual}, not {sha256}: damaged or another file; "
                f"{remedy}, or correct the hash"
            )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                notes = json.loads((file.metadata() or {}).get("sumlib", "{}"))
                names = file.keys() if weights else []
                return {key: file.get_tensor(key).clone() for key in names}, notes  # no views of the file
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # readers raise all sorts at damaged bytes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: truncated, or not a checkpoint ({reason}); {remedy}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a dictionary of tensors, as SAM's checkpoints are; {remedy}")
    return state, {}


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _plain(shapes: dict) -> dict:
    """Without adapters."""
    return {key: shape for key, shape in shapes.items() if ".adapter." not in key}


@cache
def _sam_shapes(model_type: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return _shapes(_build(model_type).state_dict())


def _kind(shapes: dict[str, tuple[int, ...]]) -> str:
    """Which model the shapes are of, and how it is read."""
    ours = {key.removeprefix("sam."): shape for key, shape in shapes.items() if key.startswith("sam.")}
    inner = _plain(ours or shapes)
    for model_type in MODEL_TYPES:
        if inner == _sam_shapes(model_type):
            if "task_prompt.weight" in shapes:
                return f"its shapes fit a SUM of model_type {model_type!r}, which load_sum reads"
            reader = f"load_sam({model_type!r}, ...)"
            return f"its shapes fit a SAM of model_type {model_type!r}, which {reader} reads"
    return f"its shapes fit none of {', '.join(MODEL_TYPES)}: use another checkpoint"


def _fill(module: nn.Module, state: dict[str, Tensor], what: str, path: Path) -> nn.Module:
    """Give a module on the device "meta" the weights of a file, if all names and shapes agree."""
    expected, given = _shapes(module.state_dict()), _shapes(state)
    wrong = [
        f"{key} is {given[key]}, expected {expected[key]}"
        for key in expected
        if given.get(key, expected[key]) != expected[key]
    ]
    wrong += [f"{key} is missing" for key in expected if key not in given]
    wrong += [f"{key} is unknown" for key in given if key not in expected]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path}: not {what}: {'; '.join(wrong[:3])}{more}; {_kind(given)}")
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise CheckpointError(
            f"{path}: {broken[0]}{more} has NaN or infinite values: train or download it again"
        )
    module.load_state_dict({key: value.float().contiguous() for key, value in state.items()}, assign=True)
    return module.eval()


def _write(path: Path, module: nn.Module, sam: Sam, metadata: dict) -> None:
    """Write ``module``, which is or holds ``sam``, as a whole or not at all."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: models are written as safetensors; let the name end in .safetensors")
    model_type, width = metadata.get("model_type"), adapter_width(sam.image_encoder)
    if width and module is sam:
        raise ValueError(
            f"{path}: not written, a SAM with adapters is no SAM to others; write it with save_sum"
        )
    if model_type not in MODEL_TYPES or _plain(_shapes(sam.state_dict())) != _sam_shapes(model_type):
        raise ValueError(
            f"{path}: not written, the model is no {model_type!r} as its metadata say; "
            f"{_kind(_shapes(sam.state_dict()))}"
        )
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    # One entry, since safetensors writes entries in random order and equal models shall be equal files.
    notes = {"sumlib": json.dumps(metadata | ({"adapter_width": width} if width else {}), sort_keys=True)}
    with whole(path) as temporary:
        save_file(tensors, temporary, metadata=notes)
