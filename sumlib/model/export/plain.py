"""A `Sum` and a task as a plain SAM, which every tool that knows SAM can use.

SUM adds a task's vector to the image embedding in the first round. SAM adds something there as well: in the
first round, when there is no mask prompt yet, the vector `no_mask_embed`; later the embedded mask prompt. So
`no_mask_embed` plus the task's vector is a SAM whose first round has the task and whose later rounds have
none, which is the method (docs/method.md section 1). Up to rounding it gives SUM's numbers.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sumlib.data.tasks import Task
from sumlib.model.adapters import LoraQKV, adapter_width
from sumlib.model.sum import Sum


class ExportError(ValueError):
    """A model that cannot be written in a form; the message says why, and which form can hold it."""


def plain_sam(model: Sum, task: int | None, form: str) -> Sam:
    """A SAM with the vector of ``task`` in its `no_mask_embed`; None: without a task.

    It shares all other weights with ``model``, which stays as it is. ``form`` is named in errors.

    Raises:
        ExportError: the model has adapters or another architecture, which no plain SAM can hold.
        ValueError: no such task.
    """
    refuse_adapters(model, form)
    return folded_sam(model, task, form)


def folded_sam(model: Sum, task: int | None, form: str) -> Sam:
    """`plain_sam` that leaves adapters where they are, for a form that holds a computation, not weights."""
    refuse_unmerged(model)
    if model.architecture:
        raise ExportError(
            f"form {form!r} holds SAM's own architecture, and this model's is {model.architecture!r}: "
            "use form 'safetensors', which load_sum reads"
        )
    check_task(model, task)
    sam, prompt = model.sam, deepcopy(model.sam.prompt_encoder)
    if task is not None:
        with torch.no_grad():
            prompt.no_mask_embed.weight += model.task_vectors[task]
    mean, std = sam.pixel_mean.flatten().tolist(), sam.pixel_std.flatten().tolist()
    return Sam(sam.image_encoder, prompt, sam.mask_decoder, mean, std).eval()


def refuse_adapters(model: Sum, form: str) -> None:
    """Raise ExportError for an image encoder with adapters or with updates that are not merged yet."""
    if adapter_width(model.sam.image_encoder):
        raise ExportError(
            f"form {form!r} holds SAM's own weights, and this model has adapters in its image encoder, "
            "whose GELU cannot be merged into them: use form 'safetensors', 'adapter' or 'onnx'"
        )
    refuse_unmerged(model)


def refuse_unmerged(model: Sum) -> None:
    """Raise ExportError for a model in the middle of a LoRA training."""
    if any(isinstance(module, LoraQKV) for module in model.sam.image_encoder.modules()):
        raise ExportError(
            "the low-rank updates of this model are not merged yet: end its training with "
            "sumlib.model.adapters.merge_lora(model.sam.image_encoder)"
        )


def check_task(model: Sum, task: int | None) -> None:
    """Raise ValueError unless ``task`` is None or an id of the model's tasks."""
    if task is not None and (isinstance(task, bool) or task not in range(len(model.task_vectors))):
        raise ValueError(f"no task {task!r}: known are 0 to {len(model.task_vectors) - 1}")


def task_titles(model: Sum, names: Sequence[str] | None) -> list[str]:
    """A name for each task id: ``names``, else those of `sumlib.data.tasks.Task` and "task 4" and so on.

    Raises ValueError unless there are as many names as tasks.
    """
    count = len(model.task_vectors)
    if names is None:
        known = [task.title for task in Task]
        return [known[k] if k < len(known) else f"task {k}" for k in range(count)]
    if len(names) != count:
        raise ValueError(f"task_names has {len(names)} names, and the model has {count} tasks (from id 0)")
    return [str(name) for name in names]


def tensors_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary as it is written: float32, on the CPU, contiguous."""
    return {key: value.detach().cpu().float().contiguous() for key, value in state.items()}
