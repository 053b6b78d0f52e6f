"""Our own form: safetensors with all task vectors, any architecture, and metadata that say what it is."""

import json
from pathlib import Path

from safetensors.torch import save_file

from sumlib.model.checkpoint import save_sum
from sumlib.model.export.architecture import known_type, own_side, shapes_of
from sumlib.model.export.plain import ExportError, refuse_unmerged, tensors_of
from sumlib.model.sum import Sum


def write_safetensors(model: Sum, path: Path, notes: dict) -> None:
    """Write a `Sum` so that `load_sum` reads it; ``notes`` are JSON values for `read_metadata`.

    A model for a smaller input side than its type's own is read by `import_model`, which sets that side.

    Raises:
        ExportError: no known type of SAM, or LoRA's updates that are not merged yet.
    """
    refuse_unmerged(model)
    known = known_type(shapes_of(model.sam.state_dict()))
    if known is None:
        raise ExportError("form 'safetensors' holds SAM's types, and this model is none of them")
    model_type, side = known[0], model.sam.image_encoder.img_size
    published = known[1] == own_side(model_type)  # the shapes of its weights
    load = (
        "sumlib.model.load_sum(path)"
        if side == own_side(model_type)
        else "sumlib.model.export.import_model(path)"
    )
    notes = notes | {"model_type": model_type, "input_side": side, "load": load}
    if published:
        save_sum(path, model, notes)
        return
    name = {"architecture": model.architecture} if model.architecture else {}
    save_file(
        tensors_of(model.state_dict()),
        path,
        metadata={"sumlib": json.dumps(notes | name, sort_keys=True)},
    )
