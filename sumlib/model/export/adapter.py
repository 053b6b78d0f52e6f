"""A small file with only what training changed, to be added to the checkpoint that it started from.

For a LoRA run these are low-rank factors of the changed projections, and decoder and prompt encoder as they
are; for a decoder-only run decoder and prompt encoder; for an adapter run the adapters as well; in each case
the task vectors. The file names its base by SHA-256 and cannot be added to another one.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor

from sumlib.model import checkpoint
from sumlib.model.checkpoint import CheckpointError
from sumlib.model.export.architecture import known_type, shapes_of
from sumlib.model.export.low_rank import factors, restored
from sumlib.model.export.plain import ExportError, refuse_unmerged, tensors_of
from sumlib.model.export.weights import sum_of
from sumlib.model.sum import Sum

BLOCKS = ("q", "k", "v")
"""The three parts of a projection ``qkv.weight`` (3 C, C): LoRA changes each for itself."""


def write_adapter(
    model: Sum, path: Path, base_file: Path, base: Sum, notes: dict, *, max_rank: int = 64
) -> None:
    """Write what differs between ``model`` and the SAM in ``base``, which was read from ``base_file``.

    A projection whose change has a rank of at most ``max_rank`` is stored as factors, exact to
    `low_rank.EXACT`; all else is stored whole and comes back bit for bit. ``notes`` are JSON values for the
    file's metadata.

    Raises:
        ExportError: the base is another type of SAM, or the updates of a LoRA run are not merged yet.
    """
    refuse_unmerged(model)
    types = [known_type(shapes_of(m.sam.state_dict())) for m in (base, model)]
    if types[0] != types[1] or types[0] is None:
        named = ["unknown" if t is None else f"{t[0]} for images of {t[1]} pixels" for t in types]
        raise ExportError(f"{base_file}: this base is {named[0]}, and the model is {named[1]}")
    old, new = _base_tensors(base.sam), tensors_of(model.state_dict())
    tensors, ranks = {}, {}
    for key, value in new.items():
        if key in old and torch.equal(old[key], value):
            continue
        thin = _factored(key, old[key], value, max_rank) if key.endswith("attn.qkv.weight") else None
        if thin is None:
            tensors[key] = value
        else:
            tensors |= thin
            ranks[key] = max(
                (part.shape[1] for name, part in thin.items() if name.endswith(".up")), default=0
            )
    facts = {
        "form": "adapter",
        "model_type": types[0][0],
        "input_side": model.sam.image_encoder.img_size,
        "base": {
            "file": base_file.name,
            "sha256": file_sha256(base_file),
            "weights_sha256": weights_sha256(base.sam),
        },
        "ranks": ranks,
    }
    save_file(tensors, path, metadata={"sumlib": json.dumps(notes | facts, sort_keys=True)})


def apply_adapter(base_model: Sum | Sam, file: str | Path) -> Sum:
    """The tuned model: ``base_model``'s SAM, which is not changed, with what an adapter file holds.

    Equal to the exported model bit for bit where weights are stored whole, and to 1e-6 of a matrix's largest
    weight where they are factored.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, no adapter file, or made for another base.
    """
    file = Path(file).expanduser()
    state, notes = checkpoint._read(file, None, "export it again")
    if notes.get("form") != "adapter":
        raise CheckpointError(f"{file}: not an adapter file; open it with import_model({str(file)!r})")
    base = base_model if isinstance(base_model, Sum) else Sum(base_model)
    return applied(base, state, notes, file, "the given model")


def applied(base: Sum, state: dict[str, Tensor], notes: dict, file: Path, given: str) -> Sum:
    """`apply_adapter` with the content of the file; ``given`` is what errors call the base."""
    needed = notes["base"]
    if weights_sha256(base.sam) != needed["weights_sha256"]:
        raise CheckpointError(
            f"{file}: made for the base {needed['file']} (SHA-256 {needed['sha256']}), and {given} holds "
            "other weights: give that file"
        )
    full = _base_tensors(base.sam)
    for key in notes["ranks"]:
        full[key] = _combined(key, full[key], state)
    thin = tuple(f"{key}.{block}." for key in notes["ranks"] for block in BLOCKS)
    return sum_of(full | {k: v for k, v in state.items() if not k.startswith(thin)}, notes, file)


def _factored(key: str, old: Tensor, new: Tensor, most: int) -> dict[str, Tensor] | None:
    """Factors of the changed blocks of a projection, or None if one has no low rank."""
    found = {}
    for block, before, after in zip(BLOCKS, old.chunk(3), new.chunk(3)):
        if torch.equal(before, after):
            continue
        pair = factors(before, after, most)
        if pair is None:
            return None
        found[f"{key}.{block}.up"], found[f"{key}.{block}.down"] = pair
    return found


def _combined(key: str, old: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The projection (3 C, C) with the blocks that the file holds as factors."""
    blocks = [
        restored(before, state[f"{key}.{block}.up"], state[f"{key}.{block}.down"])
        if f"{key}.{block}.up" in state
        else before
        for block, before in zip(BLOCKS, old.chunk(3))
    ]
    return torch.cat(blocks)


def _base_tensors(sam: Sam) -> dict[str, Tensor]:
    """SAM's own weights under the names that they have in a `Sum`."""
    return {f"sam.{k}": v for k, v in tensors_of(sam.state_dict()).items() if ".adapter." not in k}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex, as ``sha256sum`` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(sam: Sam) -> str:
    """SHA-256 of SAM's own weights, in hex: names, shapes and float32 values, whatever file they were in."""
    digest = hashlib.sha256()
    for key, value in sorted(_base_tensors(sam).items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.numpy())
    return digest.hexdigest()
