"""Which model a checkpoint file holds, by the names and shapes in it; its weights are not read."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from sumlib.model.checkpoint import MODEL_TYPES, OFFICIAL

Shapes = Mapping[str, tuple[int, ...]]
WIDTHS = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}
WIDTHS |= {(128, 6): "micro", (128, 4): "micro_l", (128, 2): "micro_b"}
"""Model by width and number of blocks of its image encoder."""
OTHERS = {
    "memory_attention.": "a SAM 2",
    "sam_mask_decoder.": "a SAM 2",
    "vision_encoder.": "a SAM of Hugging Face's transformers",
    "image_encoder.layers.": "a MobileSAM",
    "image_encoder.patch_embed.seq.": "a MobileSAM",
    "image_encoder.trunk.": "a SAM 2",
    "detector.": "a SAM 3",
    "mask_decoder.hf_token.": "an HQ-SAM in its authors' format",
}
"""What other files hold, by how one of their names begins."""


@dataclass(frozen=True)
class Recognised:
    """What a file holds."""

    path: Path
    model: str = ""
    """One of `MODEL_TYPES`; empty if it is none."""
    kind: str = ""
    """"SAM" or "SUM" (with a task prompt), or what else it is, in words."""
    side: int = 0
    """Input side in pixels."""
    tasks: int = 0
    """Vectors of the task prompt; 0 for a SAM."""
    problem: str = ""
    """Why it cannot be used, and what to do; empty if it can."""


def recognise(path: Path, expected: str = "auto") -> Recognised:
    """The model of a checkpoint; what is wrong with it is in ``problem``, nothing is raised.

    ``expected`` is the model that a project names, or "auto".
    """
    if not path.is_file():
        where = "https://dl.fbaipublicfiles.com/segment_anything/"
        names = ", ".join(OFFICIAL.values())
        return Recognised(path, problem=f"there is no such file; SAM's own are {names}, at {where}")
    try:
        shapes = _shapes(path)
    except pickle.UnpicklingError:
        text = "is no checkpoint, or holds more than tensors; save its state_dict as a file of its own"
        return Recognised(path, problem=text)
    except Exception as error:  # readers raise all sorts at damaged bytes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return Recognised(path, problem=f"is truncated or no checkpoint ({reason}); download it again")
    found = model_of(path, shapes)
    if not found.problem and expected not in ("auto", found.model):
        text = f"holds a {found.model}, but the project says model: {expected}; correct one of them"
        return Recognised(path, found.model, found.kind, found.side, found.tasks, text)
    return found


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a file."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    try:
        state = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except RuntimeError:  # a file of before PyTorch 1.6
        state = torch.load(path, map_location="meta", weights_only=True)
    flat = {}
    for key, value in state.items() if isinstance(state, dict) else ():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, tensor in inner:
            if isinstance(tensor, torch.Tensor):
                flat[f"{key}/{name}" if name else key] = tuple(tensor.shape)
    return flat


def model_of(path: Path, shapes: Shapes) -> Recognised:
    """The model whose tensors have these names and shapes; ``path`` only names the file."""
    for beginning, what in OTHERS.items():
        if any(key.startswith(beginning) or f"/{beginning}" in key for key in shapes):
            text = f"is {what}, which is not read here; use a SAM of {', '.join(OFFICIAL)}"
            return Recognised(path, kind=what, problem=text)
    inner = {key.removeprefix("sam."): shape for key, shape in shapes.items()}
    position = inner.get("image_encoder.pos_embed")
    if position is None or len(position) != 4:
        wrapped = next((key for key in shapes if key.endswith("image_encoder.pos_embed")), None)
        text = f"holds no SAM; use a checkpoint of {', '.join(MODEL_TYPES)}"
        if wrapped:
            outer = wrapped.removesuffix("image_encoder.pos_embed")
            text = f"holds its SAM under the name {outer.rstrip('/.')!r}; save that part as a file of its own"
        return Recognised(path, problem=text)
    blocks = {key.split(".")[2] for key in inner if key.startswith("image_encoder.blocks.")}
    model = WIDTHS.get((position[3], len(blocks)), "")
    patch = inner.get("image_encoder.patch_embed.proj.weight", (0, 0, 4, 4))[-1]
    vectors = shapes.get("task_prompt.weight", (0,))[0]
    kind = "SUM" if vectors else "SAM"
    problem = ""
    if not model:
        text = f"has an image encoder of width {position[3]} with {len(blocks)} blocks"
        problem = f"{text}, as none of {', '.join(MODEL_TYPES)} has; use another checkpoint"
    elif not any(key.startswith("mask_decoder.") for key in inner):
        problem = "holds an image encoder, but no mask decoder; use the whole model's checkpoint"
    return Recognised(path, model, kind, position[1] * patch, vectors, problem)
