"""`export_model`: one model, five forms, each checked before it takes its place."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from sumlib.model.export import adapter, check, huggingface, native, official, onnx_files, read
from sumlib.model.export.architecture import frame_of_tables, known_type, settled, shapes_of
from sumlib.model.export.card import Card, huggingface_card, onnx_card
from sumlib.model.export.low_rank import EXACT
from sumlib.model.export.plain import check_task, folded_sam, plain_sam, task_titles
from sumlib.model.export.staging import check_file, check_folder, staged
from sumlib.model.sum import Sum


def export_model(
    model: Sum,
    path: str | Path,
    form: str,
    *,
    task: int | None = None,
    base: str | Path | None = None,
    verify: bool = True,
    **options: Any,
) -> list[Path]:
    """Write ``model`` in a form that other tools read; returns the files.

    | form | ``path`` | holds | read by |
    | --- | --- | --- | --- |
    | "pth" | file ``.pth`` | a plain SAM with ``task`` in its first round | what takes SAM's checkpoints |
    | "huggingface" | folder | the same | `transformers.SamModel.from_pretrained` |
    | "onnx" | folder | the same, as ``encoder.onnx`` and ``decoder.onnx`` | annotation tools, onnxruntime |
    | "safetensors" | file | all tasks, adapters, HQ-SAM's head | `load_sum`, `import_model` |
    | "adapter" | file ``.safetensors`` | what differs from ``base`` | `import_model`, `apply_adapter` |

    It is written whole or not at all: first beside ``path``, then read again and compared with the model in
    two rounds of one prompt (``verify``), then moved there. An earlier export at ``path`` is replaced.

    Args:
        task: id of the task that the plain SAM has in its first round; None: no task. The last two forms hold
            all tasks, and only note it as the one that is meant.
        base: for "adapter", the checkpoint that the training started from.
        options: "pth": ``every_round`` (HQ-SAM's architecture: tell the task in all rounds).
            "huggingface" and "onnx": the fields of `card.Card` (``title``, ``trained``, ``licence``,
            ``limits``). "onnx": ``single_mask`` (True: the best mask, which annotation tools expect; False:
            all four). "adapter": ``max_rank``. "safetensors" and "adapter": ``metadata`` (JSON values, such
            as the project's name). All but "pth": ``task_names``, one for each id.

    Raises:
        ExportError: the form cannot hold this model, or what was written does not give its masks; the message
            names the form that can.
        ImportError: a package is missing that only this form needs.
        ValueError: no such form, task or option.
    """
    if form not in FORMS:
        raise ValueError(f"no form {form!r}; known are {', '.join(sorted(FORMS))}")
    path = Path(path).expanduser()
    if base is not None and form != "adapter":
        raise ValueError(f"base is for form 'adapter'; form {form!r} holds the whole model, leave it out")
    check_task(model, task)
    write = _WRITERS[form]
    known = [name for name in inspect.signature(write).parameters if name not in GIVEN]
    if form in ("huggingface", "onnx"):
        known += [field.name for field in fields(Card)]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"form {form!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    more = {"base": base} if form == "adapter" else {}
    with _at_rest(model):
        write(model, path, task, verify, **more, **options)
    return sorted(path.iterdir()) if path.is_dir() else [path]


GIVEN = ("model", "path", "task", "verify", "base", "card")


def _pth(model: Sum, path: Path, task: int | None, verify: bool, every_round: bool = False) -> None:
    check_file(path, (".pth", ".pt"), "pth")
    with staged(path) as file:
        official.write_pth(model, file, task, every_round=every_round)
        if verify:
            found = read.import_model(file)
            check.check_encoder(model, found, path)
            if not every_round:
                with frame_of_tables(model.sam):
                    check.check_decode(model, found, task, True, path)


def _safetensors(
    model: Sum,
    path: Path,
    task: int | None,
    verify: bool,
    metadata: dict | None = None,
    task_names: Sequence[str] | None = None,
) -> None:
    check_file(path, (".safetensors",), "safetensors")
    with staged(path) as file:
        native.write_safetensors(
            model, file, _notes(model, task, metadata, task_names) | {"form": "safetensors"}
        )
        if verify:
            found = read.import_model(file)
            check.check_encoder(model, found, path)
            check.check_decode(model, found, task, False, path)


def _adapter(
    model: Sum,
    path: Path,
    task: int | None,
    verify: bool,
    base: str | Path | None,
    metadata: dict | None = None,
    task_names: Sequence[str] | None = None,
    max_rank: int = 64,
) -> None:
    check_file(path, (".safetensors",), "adapter")
    if base is None:
        raise ValueError("form 'adapter' needs base=, the checkpoint that the training started from")
    base = Path(base).expanduser()
    if base.is_dir():
        raise ValueError(f"{base}: is a folder; base= is a file, whose SHA-256 the adapter file names")
    start, notes = read.import_model(base), _notes(model, task, metadata, task_names)
    with staged(path) as file:
        adapter.write_adapter(model, file, base, start, notes, max_rank=max_rank)
        if verify:
            found = adapter.apply_adapter(start, file)
            check.check_encoder(model, found, path, loose=EXACT)
            check.check_decode(model, found, task, False, path)


def _huggingface(
    model: Sum,
    path: Path,
    task: int | None,
    verify: bool,
    task_names: Sequence[str] | None = None,
    **card: str,
) -> None:
    check_folder(path, huggingface.FILES, "huggingface")
    sam, title = settled(plain_sam(model, task, "huggingface")), _title(model, task, task_names)
    with staged(path) as folder:
        text = huggingface_card(Card(**card), title, _named(model), sam.image_encoder.img_size)
        huggingface.write_folder(sam, folder, text)
        if verify:
            check.check_encoder(Sum(sam), read.import_model(folder), path)
            check.check_huggingface(sam, folder, path)


def _onnx(
    model: Sum,
    path: Path,
    task: int | None,
    verify: bool,
    task_names: Sequence[str] | None = None,
    single_mask: bool = True,
    **card: str,
) -> None:
    check_folder(path, onnx_files.FILES, "onnx")
    sam, title = settled(folded_sam(model, task, "onnx")), _title(model, task, task_names)
    sides = (sam.image_encoder.img_size, sam.prompt_encoder.mask_input_size[0])
    with staged(path) as folder:
        text = onnx_card(Card(**card), title, _named(model), sides, single_mask)
        onnx_files.write_folder(sam, folder, text, single_mask=single_mask)
        if verify:
            check.check_onnx(sam, folder, path, single_mask)


_WRITERS: dict[str, Callable] = {
    "pth": _pth,
    "safetensors": _safetensors,
    "huggingface": _huggingface,
    "onnx": _onnx,
    "adapter": _adapter,
}
FORMS = frozenset(_WRITERS)
"""The forms of `export_model`."""


def _notes(model: Sum, task: int | None, metadata: dict | None, names: Sequence[str] | None) -> dict:
    """Metadata of our own forms."""
    return (metadata or {}) | {"tasks": task_titles(model, names), "task": task}


def _title(model: Sum, task: int | None, names: Sequence[str] | None) -> str | None:
    titles = task_titles(model, names)
    return None if task is None else titles[task]


def _named(model: Sum) -> str:
    known = known_type(shapes_of(model.sam.state_dict()))
    return known[0] if known else "of its own size"


@contextmanager
def _at_rest(model: Sum) -> Iterator[None]:
    """The model on the CPU and in evaluation mode, and afterwards as it was."""
    device, training = model.sam.device, model.training
    model.cpu().eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.to(device).train(training)
