"""Reading notebook files."""

import json
from pathlib import Path

from sumlib.base.paths import NOTEBOOKS


class NotebookError(RuntimeError):
    """A notebook that cannot be read or whose execution failed; the message says which and where to look."""


def notebook_path(name: str, folder: Path = NOTEBOOKS) -> Path:
    """Path of the notebook `name`; NotebookError with the known names if there is none."""
    path = folder / f"{name}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.ipynb"))) or "none"
        raise NotebookError(f"no notebook {name!r} in {folder.name}/; it has: {known}")
    return path


def read_cells(path: Path) -> list[dict]:
    """Cells of a notebook file as JSON objects, `source` joined to one text."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise NotebookError(f"{path.name} is not a notebook ({error}); restore it with git") from None
