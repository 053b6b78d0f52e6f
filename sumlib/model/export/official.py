"""The checkpoints of SAM and of HQ-SAM: a dictionary of weights in a ``.pth`` file, under their names."""

import re
from pathlib import Path

import torch
from torch import Tensor

from sumlib.model.export.architecture import known_type, own_side, shapes_of
from sumlib.model.export.plain import ExportError, check_task, plain_sam, refuse_adapters, tensors_of
from sumlib.model.sum import Sum

HQ_NAMES = {
    "hq.token.": "mask_decoder.hf_token.",
    "hq.mlp.": "mask_decoder.hf_mlp.",
    "hq.early.": "mask_decoder.compress_vit_feat.",
    "hq.late.": "mask_decoder.embedding_encoder.",
    "hq.masks.": "mask_decoder.embedding_maskfeature.",
}
"""Beginnings of the names of HQ-SAM's weights: ours, and those of its authors' checkpoints."""
HQ_SIGN = "mask_decoder.hf_token.weight"


def official_state(model: Sum, task: int | None, *, every_round: bool = False) -> dict[str, Tensor]:
    """Weights under the names of SAM's checkpoints, or of HQ-SAM's if that is the architecture.

    ``task`` None: without a task. A SAM that `resize_input` has made smaller goes out with its weights, which
    those tools use at the type's own side. In HQ-SAM's architecture the task lies in output tokens, which all
    rounds share: a task can be told in every round (``every_round``) or in none.

    Raises:
        ExportError: adapters, another architecture or input side, or HQ-SAM's with a task and not
            ``every_round``.
        ValueError: no such task.
    """
    refuse_adapters(model, "pth")
    known = known_type(shapes_of(model.sam.state_dict()))
    if known is None or known[1] != own_side(known[0]):
        found = "is of no known type" if known is None else f"takes images of {known[1]} pixels"
        raise ExportError(
            f"form 'pth' is read by tools that build SAM in its published sizes, and this model {found}: "
            "use form 'huggingface', 'onnx' or 'safetensors'"
        )
    if model.architecture == "hq_sam":
        return _hq_state(model, task, every_round)
    if every_round:
        raise ExportError("every_round is for HQ-SAM's architecture; a plain SAM has the task in round 1")
    return tensors_of(plain_sam(model, task, "pth").state_dict())


def _hq_state(model: Sum, task: int | None, every_round: bool) -> dict[str, Tensor]:
    check_task(model, task)
    if task is not None and not every_round:
        raise ExportError(
            "HQ-SAM's checkpoints have the same output tokens in every round, so that the task cannot be "
            "told in the first one only: use form 'safetensors'; or leave task out; or give "
            "every_round=True, which tells it in all rounds and is made for a single prompt"
        )
    state = tensors_of(model.sam.state_dict())
    for key, value in tensors_of(model.state_dict()).items():
        for ours, theirs in HQ_NAMES.items():
            if key.startswith(ours):
                state[theirs + key.removeprefix(ours)] = value
    if task is not None:
        token, masks = (
            table.weight[task].detach().cpu() for table in (model.hq.task_token, model.hq.task_masks)
        )
        state[HQ_SIGN] = state[HQ_SIGN] + token
        state["mask_decoder.mask_tokens.weight"] = state["mask_decoder.mask_tokens.weight"] + masks
    return state


def split_hq(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """HQ-SAM's checkpoint -> SAM's own weights, and those of the head under our names ("hq.token.weight")."""
    sam, head = {}, {}
    for key, value in state.items():
        ours = next((own for own, theirs in HQ_NAMES.items() if key.startswith(theirs)), None)
        if ours is None:
            sam[key] = value
        else:
            head[re.sub("^" + re.escape(HQ_NAMES[ours]), ours, key)] = value
    return sam, head


def write_pth(model: Sum, path: Path, task: int | None, *, every_round: bool = False) -> None:
    """SAM's own kind of checkpoint: ``sam_model_registry["vit_b"](checkpoint=path)`` reads it."""
    torch.save(official_state(model, task, every_round=every_round), path)
