"""Reading again what `export_model` wrote, and what others wrote in the same forms."""

from pathlib import Path

from sumlib.model import checkpoint
from sumlib.model.checkpoint import CheckpointError
from sumlib.model.export import adapter, huggingface
from sumlib.model.export.weights import sum_of
from sumlib.model.sum import Sum

REMEDY = "export or download it again"


def import_model(path: str | Path, base: str | Path | None = None) -> Sum:
    """A model in evaluation mode, float32 on the CPU, from any form that holds weights.

    Args:
        path: a checkpoint of SAM or of HQ-SAM (``.pth``), or one of ours (``.safetensors``); a Hugging Face
            folder with ``config.json``; an adapter file.
        base: for an adapter file, the checkpoint that it was made for, in any of these forms.

    In plain SAMs a task that was folded in by `export_model` stays there, and the task vectors are zero.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be used; the message names the file, what is wrong and the remedy.
        ValueError: ``base`` for what is no adapter file.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _from_folder(path, base)
    if path.suffix == ".onnx":
        raise CheckpointError(_no_onnx(path))
    state, notes = checkpoint._read(path, None, REMEDY)
    if notes.get("form") == "adapter":
        if base is None:
            needed = notes["base"]
            raise ValueError(
                f"{path}: an adapter file holds only what training changed; give base=, the path of "
                f"{needed['file']} (SHA-256 {needed['sha256']})"
            )
        return adapter.applied(import_model(base), state, notes, path, str(base))
    _refuse_base(path, base)
    return sum_of(state, notes, path)


def _from_folder(path: Path, base: str | Path | None) -> Sum:
    if (path / "config.json").is_file():
        _refuse_base(path, base)
        return huggingface.read_folder(path)
    if any(path.glob("*.onnx")):
        raise CheckpointError(_no_onnx(path))
    raise CheckpointError(f"{path}: a folder without config.json, so not one of Hugging Face's; name a file")


def _refuse_base(path: Path, base: str | Path | None) -> None:
    if base is not None:
        raise ValueError(f"{path}: holds a whole model; base= is for adapter files only, leave it out")


def _no_onnx(path: Path) -> str:
    return (
        f"{path}: ONNX holds a fixed computation, in which weights have lost their names and some are "
        "merged: no model can be made of it again; import the checkpoint that it was exported from"
    )
