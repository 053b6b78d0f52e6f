"""Files that are written as a whole or not at all."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to, which takes its place at the end.

    After an error nothing is left. The folder is made if there is none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_files(folder: Path, files: Iterable[Path]) -> None:
    """Remove ``files`` of a folder and what a killed `whole` left of them, then the folder if it is empty."""
    for file in files:
        file.unlink(missing_ok=True)
        _temporary(file).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 with plain line ends, as a whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
