"""A `Sum` from the weights of a file, whoever wrote it."""

from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sumlib.model import checkpoint
from sumlib.model.adapters import add_adapters
from sumlib.model.checkpoint import MODEL_TYPES, CheckpointError
from sumlib.model.export.architecture import empty_sam, known_type, shapes_of
from sumlib.model.export.official import HQ_SIGN, split_hq
from sumlib.model.light_encoder import resize_input
from sumlib.model.sum import NUM_TASKS, Sum

FIRST_ADAPTER = "sam.image_encoder.blocks.0.attn.adapter.down.weight"


def sum_of(state: dict[str, Tensor], notes: dict, path: Path) -> Sum:
    """A `Sum` from the weights of a file: of ours, of a plain SAM, or of an HQ-SAM.

    ``notes`` are the file's metadata, ``path`` is named in errors. Raises CheckpointError.
    """
    if any(key.startswith("vision_encoder.") for key in state):
        raise CheckpointError(
            f"{path}: weights under Hugging Face's names; give the folder with its config.json, {path.parent}"
        )
    state = _under_our_names(state)
    shapes = shapes_of({k.removeprefix("sam."): v for k, v in state.items() if k.startswith("sam.")})
    known = known_type(shapes)
    if known is None:
        raise CheckpointError(
            f"{path}: its shapes fit none of {', '.join(MODEL_TYPES)}, at no input side: use another "
            "checkpoint"
        )
    architecture = checkpoint._architecture(path, notes.get("architecture"), state)
    tasks = len(state.get("task_prompt.weight", range(NUM_TASKS)))
    with torch.device("meta"):
        model = architecture(empty_sam(*known), tasks)
        if FIRST_ADAPTER in state:
            add_adapters(model.sam.image_encoder, len(state[FIRST_ADAPTER]))
    model = checkpoint._fill(model, state, f"a {known[0]} for images of {known[1]} pixels", path)
    if (side := notes.get("input_side", known[1])) != known[1]:
        resize_input(model.sam, side)
    return model


def _under_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a plain SAM or of an HQ-SAM -> of a `Sum` with task vectors of zero."""
    if any(key.startswith("sam.") for key in state):
        return state
    sam, head = split_hq(state) if HQ_SIGN in state else (state, {})
    token = sam.get("prompt_encoder.no_mask_embed.weight")
    renamed = {f"sam.{key}": value for key, value in sam.items()} | head
    tables = ("task_prompt", "hq.task_token", "hq.task_masks") if head else ("task_prompt",)
    if token is not None:
        renamed |= {f"{name}.weight": torch.zeros(NUM_TASKS, token.shape[1]) for name in tables}
    return renamed


def sum_of_sam(sam: Sam, state: dict[str, Tensor], path: Path) -> Sum:
    """A `Sum` of an empty SAM that is built already, with SAM's weights and task vectors of zero."""
    with torch.device("meta"):
        model = Sum(sam)
    return checkpoint._fill(model, _under_our_names(state), "a SAM of its config.json", path)
