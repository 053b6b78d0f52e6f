"""Results that appear whole or not at all, be they a file or a folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sumlib.model.export.plain import ExportError


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside ``path``; it takes that place at the end.

    After an error nothing is left, and what stood at ``path`` before still stands there.
    """
    room = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(room, ignore_errors=True)  # of a killed run
    room.mkdir(parents=True)
    try:
        yield room / path.name
        _readable(room / path.name)
        if path.is_dir():
            os.replace(path, room / "before")
        os.replace(room / path.name, path)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _readable(path: Path) -> None:
    """Give files the rights that new files have here: safetensors writes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in path.iterdir() if path.is_dir() else [path]:
        file.chmod(0o666 & ~mask)


def check_file(path: Path, suffixes: tuple[str, ...], form: str) -> None:
    """Raise ExportError unless ``path`` can become a file with one of ``suffixes``."""
    if path.suffix not in suffixes:
        raise ExportError(f"{path}: form {form!r} is a file; let its name end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ExportError(f"{path}: is a folder, and form {form!r} is a file; choose another name")


def check_folder(path: Path, own: tuple[str, ...], form: str) -> None:
    """Raise ExportError unless ``path`` can become a folder without harm to files other than ``own``.

    An earlier export, with no files but ``own`` in it, is replaced.
    """
    if path.exists() and not path.is_dir():
        raise ExportError(f"{path}: is a file, and form {form!r} is a folder; choose another name")
    others = sorted(item.name for item in path.iterdir() if item.name not in own) if path.is_dir() else []
    if others:
        raise ExportError(
            f"{path}: holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}), which "
            f"form {form!r} would replace; name a new folder, such as {path / 'export'}"
        )
