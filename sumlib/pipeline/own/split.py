"""Which images are held out: by their names and a seed, and never a picture that is also trained on."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from sumlib.data.images import BadSampleError
from sumlib.pipeline.own.reading.files import Listed
from sumlib.pipeline.own.reading.pictures import read_picture

LOOK = 16
"""Side of the small pictures by which two files of one name are compared."""
ALIKE = 4.0
"""Mean difference of grey values up to which they are the same picture."""


def same_bytes(files: Sequence[Listed]) -> dict[Path, str]:
    """A mark for each file that is byte for byte the same as another; only files of equal size are read."""
    sizes = Counter(file.size for file in files)
    marks: dict[Path, str] = {}
    for file in files:
        if sizes[file.size] > 1 and file.size > 0 and (mark := _mark(file.path)):
            marks[file.path] = mark
    counts = Counter(marks.values())
    return {path: mark for path, mark in marks.items() if counts[mark] > 1}


def _mark(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError:
        return None


def same_picture(first: Path, second: Path) -> bool:
    """Whether two files show the same picture, perhaps in different formats or sizes."""
    try:
        small = [
            cv2.resize(read_picture(path).pixels.mean(2), (LOOK, LOOK), interpolation=cv2.INTER_AREA)
            for path in (first, second)
        ]
    except BadSampleError:
        return False
    return bool(np.abs(small[0] - small[1]).mean() <= ALIKE)


def hold_out(
    tasks: Mapping[str, Collection[int]], share: float, seed: int, groups: Mapping[str, str]
) -> set[str]:
    """Names of the images that are held out: of each task's images the ``share``, rounded, at least one.

    ``tasks`` are the task ids of each image's masks. Images of one of the ``groups`` (by image name) stay
    together. The order is that of a hash of seed and name: it does not depend on folders, and a new image
    changes little. One image, or group, is always left to train on.

    >>> names = {str(n): {1} for n in range(10)}
    >>> len(hold_out(names, 0.2, 0, {})), hold_out(names, 0.2, 0, {}) == hold_out(names, 0.2, 0, {})
    (2, True)
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name in tasks:
        members[groups.get(name, name)].append(name)
    for names in members.values():
        names.sort()
    order = sorted(members.values(), key=lambda names: hashlib.sha256(f"{seed} {names[0]}".encode()).digest())
    total = Counter(task for found in tasks.values() for task in found)
    wanted = {task: min(max(1, round(share * n)), n - 1) if share else 0 for task, n in total.items()}
    held: set[str] = set()
    taken: Counter = Counter()
    for names in order[:-1]:
        own = Counter(task for name in names for task in tasks[name])
        if any(taken[task] + count <= wanted[task] for task, count in own.items()):
            held |= set(names)
            taken += own
    if not held and share and len(order) > 1:  # groups too large for the share
        held |= set(order[0])
    return held
