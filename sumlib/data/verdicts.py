"""Which samples of a data set are bad, remembered between processes: a set is read through once.

A verdict holds as long as the name, size and times of every file of the set, the way it is read and the
readers' code are the same. It lies in `artifacts/checked/`, which may be deleted at any time.
"""

import functools
import hashlib
import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import PIL

from sumlib.base.files import write_text
from sumlib.base.paths import ARTIFACTS

CHECKED = ARTIFACTS / "checked"
WORTH = 32
"""Smaller sets are read anew: that takes no time."""

Verdict = list[tuple[str, str, str, str]]
"""(sample, annotation or "", path, reason) of what is bad."""


def recall(name: str, loads: Sequence[Any], folder: Path = CHECKED) -> Verdict | None:
    """What is bad among the samples that `loads` read, as remembered; None if it is not known."""
    path = _place(name, loads, folder)
    if path is None:
        return None
    try:
        return [
            (sample, annotation, file, reason)
            for sample, annotation, file, reason in json.loads(path.read_text())
        ]
    except (OSError, ValueError, TypeError):
        return None


def remember(name: str, loads: Sequence[Any], verdict: Verdict, folder: Path = CHECKED) -> None:
    """Keep a verdict. A folder that cannot be written to is no error."""
    path = _place(name, loads, folder)
    if path is not None:
        with suppress(OSError):
            write_text(path, json.dumps(verdict))


def _place(name: str, loads: Sequence[Any], folder: Path) -> Path | None:
    """The file of a set's verdict, named by all that it depends on; None for small sets and unknown ways to
    read.
    """
    if len(loads) < WORTH or not all(isinstance(load, partial) for load in loads):
        return None
    digest = hashlib.sha256(_readers().encode())
    try:
        for load in loads:
            digest.update(pickle.dumps(load))
            for path in _paths([load.args, list(load.keywords.values())]):
                digest.update(_state(path).encode())
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return folder / f"{name.replace('/', '-')}-{digest.hexdigest()[:24]}.json"


def _paths(value: Any) -> Iterator[Path]:
    """The files among the arguments of a reader."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, (Path, list, tuple)):
                yield from _paths(item)


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"{path} none"
    return f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


@functools.cache
def _readers() -> str:
    """The code that reads: files of this package and of what it decodes with."""
    here = Path(__file__).parent
    files = [*sorted(here.rglob("*.py")), here.parent / "base" / "masks.py"]
    return PIL.__version__ + "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
