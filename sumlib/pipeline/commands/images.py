"""The images that a command is given: files and folders."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sumlib.pipeline.commands.common import UsageError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of files in a folder that are taken for images. A file that is named itself may have any."""


def find_images(inputs: Sequence[Path], outputs: Sequence[Path]) -> tuple[Path, dict[str, Path]]:
    """The folder that holds all inputs, and all images in it by a name that no other has, in order.

    The name is the path inside the folder without its ending, or with it where two images differ in nothing
    else. Hidden files, and what lies below the folders ``outputs``, are left out.

    Raises:
        UsageError: an input is not there, or there is no image.
    """
    inputs = [Path(os.path.abspath(path)) for path in inputs]
    if missing := [str(path) for path in inputs if not path.exists()]:
        raise UsageError(f"there is no {missing[0]}")
    top = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in inputs]))
    outputs = [Path(os.path.abspath(path)) for path in outputs]
    found = {path for path in inputs if not path.is_dir()}
    for folder in (path for path in inputs if path.is_dir()):
        found.update(path for path in folder.rglob("*") if _is_image(path, folder, outputs))
    if not found:
        raise UsageError(f"no image in {', '.join(map(str, inputs))}: files end in {', '.join(ENDINGS)}")
    short = {path: path.relative_to(top).with_suffix("").as_posix() for path in sorted(found)}
    uses = Counter(short.values())
    return top, {
        name if uses[name] == 1 else path.relative_to(top).as_posix(): path for path, name in short.items()
    }


def _is_image(path: Path, folder: Path, outputs: Sequence[Path]) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    written = any(path.is_relative_to(one) and not folder.is_relative_to(one) for one in outputs)
    return path.suffix.lower() in ENDINGS and not hidden and not written and path.is_file()
