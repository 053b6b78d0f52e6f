"""What a report is made of: plain tables, numbers and pictures, on disk as they are in memory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sumlib.base.files import whole, write_text
from sumlib.pipeline.own.probe import FOUNDATION, TUNED

HUMAN = "human masks only"
"""The model that was trained on the human masks alone, for comparison."""
MODELS = (FOUNDATION, HUMAN, TUNED)
"""Names of the models in all tables, in the order in which they are shown."""
FILE = "results.json"
PICTURES = "pictures"
VERSION = 1


@dataclass(frozen=True)
class Weights:
    """One file or folder with the tuned model."""

    form: str
    """safetensors, pth, huggingface, onnx or adapter: a form of `sumlib.model.export`."""
    path: str
    """Relative to the project's folder where it lies below it."""
    bytes: int = 0
    task: str = ""
    """The task that is folded into it; empty: none, or it is told."""


@dataclass(frozen=True)
class Example:
    """Pictures of one mask: file names below the folder of the results, with their titles."""

    kind: str
    """better, worse, uncertainty or another word: examples of a kind stand together."""
    pictures: tuple[tuple[str, str], ...]
    """(title, file)."""
    caption: str = ""


@dataclass
class Results:
    """All that a report may say. What is None or empty is left out of it."""

    name: str
    """Of the project."""
    about: dict[str, Any] = field(default_factory=dict)
    """Of the data and the model: images, masks, train_images, train_masks, held_out_images, held_out_masks,
    unlabeled_images, model_type, checkpoint, tuning, recipe, device: those that are known."""
    held_out: pd.DataFrame | None = None
    """Rows of `sumlib.pipeline.own.evaluation.evaluate_own` for the models `MODELS` (those there are)."""
    extra: pd.DataFrame | None = None
    """The same on further sets, told apart by the column dataset."""
    probe: pd.DataFrame | None = None
    """Rows of `sumlib.pipeline.own.probe.forgetting_probe` for the same models."""
    keep: dict[str, Any] = field(default_factory=dict)
    """keep, rule, chosen (false if the user set it) and honest (`Choice.honest`)."""
    keep_curve: pd.DataFrame | None = None
    """`sumlib.pipeline.own.keep.Choice.curve`."""
    learning_curve: pd.DataFrame | None = None
    """Of `sumlib.pipeline.own.keep.learning_curve`."""
    examples: tuple[Example, ...] = ()
    skipped: pd.DataFrame | None = None
    """What was left out: kind (in words), name, file, reason."""
    weights: tuple[Weights, ...] = ()
    stages: pd.DataFrame | None = None
    """Time and memory: stage, seconds, memory_mb and, where there is one, gpu_mb; NaN where not measured."""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    """Id of each task by name."""


TABLES = ("held_out", "extra", "probe", "keep_curve", "learning_curve", "skipped", "stages")
SHORT = ("keep_curve", "learning_curve", "skipped", "stages")
"""Tables that people may want to open; they are written as CSV, the others as Parquet."""


def keep_fields(choice: Any, chosen: bool = True) -> dict[str, Any]:
    """The fields ``keep`` and ``keep_curve`` of `Results` from a `sumlib.pipeline.own.keep.Choice`."""
    said = {"keep": choice.keep, "rule": choice.rule, "chosen": chosen, "honest": choice.honest}
    return {"keep": said, "keep_curve": choice.curve}


def save_results(results: Results, folder: Path) -> Path:
    """Write ``results`` to ``folder``: JSON, a table a file; pictures are there already.

    Tables of an earlier run that are no longer part of it are removed.
    """
    content = {"version": VERSION}
    for one in fields(results):
        value = getattr(results, one.name)
        if one.name in TABLES:
            _save_table(value, one.name, folder)
        else:
            content[one.name] = _plain(value)
    write_text(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return folder / FILE


def read_results(folder: Path) -> Results:
    """What `save_results` wrote. Raises FileNotFoundError, or ValueError if it cannot be read."""
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there are no results there; run the project first")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("version") != VERSION:
            raise ValueError("is of another version of sumlib")
        content["examples"] = tuple(
            Example(one["kind"], tuple(map(tuple, one["pictures"])), one["caption"])
            for one in content["examples"]
        )
        content["weights"] = tuple(Weights(**one) for one in content["weights"])
        return Results(**content, **{name: _read_table(name, folder) for name in TABLES})
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{file}: cannot be used ({error}); run the project's last stage again") from error


def _table_file(name: str, folder: Path) -> Path:
    return folder / f"{name}.{'csv' if name in SHORT else 'parquet'}"


def _save_table(table: pd.DataFrame | None, name: str, folder: Path) -> None:
    file = _table_file(name, folder)
    if table is None:
        file.unlink(missing_ok=True)
        return
    with whole(file) as temporary:
        if name in SHORT:
            table.to_csv(temporary, index=False, lineterminator="\n")
        else:
            table.to_parquet(temporary, index=False)


def _read_table(name: str, folder: Path) -> pd.DataFrame | None:
    file = _table_file(name, folder)
    if not file.is_file():
        return None
    return pd.read_csv(file, keep_default_na=name != "skipped") if name in SHORT else pd.read_parquet(file)


def _plain(value: Any) -> Any:
    """The value as JSON has it: paths as texts, numpy's numbers as numbers, NaN as None."""
    if is_dataclass(value):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
