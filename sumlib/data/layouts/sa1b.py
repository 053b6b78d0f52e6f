"""Adapter for SA-1B as an unlabeled set: folders `sa_000000/` or archives `sa_000000.tar`, images only."""

import functools
import gzip
import os
import tarfile
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sumlib.data.dataset import Entry, Loaded
from sumlib.data.images import BadSampleError, read_image

MAX_BYTES = 2**28
"""Largest member of an archive: no image of SA-1B is near it, and a bomb must not fill the memory."""


def sa1b(root: Path) -> list[Entry]:
    """Every `sa_<id>.jpg` of SA-1B under `root`, by part, then by id. The `.json` beside an image is never
    opened.

    An archive is read in place (some are gzip despite their name; random access to those is slow: unpack
    them, or read in order); an unpacked folder of the same name is preferred. A `.json` without its image
    becomes an entry that raises BadSampleError. Raises FileNotFoundError if there is no part, ValueError if
    an archive is truncated.
    """
    parts = {path.stem: path for path in sorted(root.glob("sa_*.tar")) if path.is_file()}
    parts |= {path.name: path for path in sorted(root.glob("sa_*")) if path.is_dir()}
    if not parts:
        raise FileNotFoundError(
            f"{root}: holds no sa_000000 folder and no sa_000000.tar; put SA-1B's parts there"
        )
    entries = []
    for _, part in sorted(parts.items()):
        entries += _from_folder(part) if part.is_dir() else _from_archive(part)
    return entries


def load_file(path: Path) -> Loaded:
    """Image (H, W, 3) uint8 and no masks (0, H, W). Raises BadSampleError."""
    return _unlabeled(read_image(path))


def load_member(archive: Path, name: str, offset: int, size: int, zipped: bool) -> Loaded:
    """The same for `size` bytes at `offset` of an archive (of its unzipped stream if `zipped`)."""
    try:
        if zipped:
            stream, lock = _stream(archive, os.getpid())
            with lock:
                stream.seek(offset)
                data = stream.read(size)
        else:
            with archive.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise BadSampleError(archive, f"cannot read {name} ({error}); download the archive again") from error
    return _unlabeled(read_image(archive / name, data))


def missing(path: Path) -> None:
    """What reading an image that is not there does."""
    raise BadSampleError(path, "image is missing though its .json is there; restore it or remove the .json")


def _unlabeled(image: np.ndarray) -> Loaded:
    return image, np.zeros((0, *image.shape[:2]), bool), {}


def _from_folder(folder: Path) -> list[Entry]:
    names = os.listdir(folder)
    return _entries(folder, names, lambda stem: partial(load_file, folder / f"{stem}.jpg"))


def _from_archive(archive: Path) -> list[Entry]:
    with archive.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        members = {Path(m.name).name: m for m in _members(archive, zipped)}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{archive}: archive is truncated or no tar file ({error}); download it again"
        ) from error

    def load(stem: str) -> partial:
        member = members[f"{stem}.jpg"]
        return partial(load_member, archive, f"{stem}.jpg", member.offset_data, member.size, zipped)

    return _entries(archive, members, load)


def _entries(part: Path, names, load) -> list[Entry]:
    """Entries of the images among `names`, and of the images that a .json says should be there."""
    images = {n[:-4] for n in names if n.startswith("sa_") and n.endswith(".jpg")}
    described = {n[:-5] for n in names if n.startswith("sa_") and n.endswith(".json")}
    ordered = sorted(images | described, key=lambda stem: (len(stem), stem))
    return [
        Entry(
            stem,
            part / f"{stem}.jpg",
            load(stem) if stem in images else partial(missing, part / f"{stem}.jpg"),
        )
        for stem in ordered
    ]


def _members(archive: Path, zipped: bool) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(archive, "r:gz" if zipped else "r:") as tar:
        for member in tar:
            if member.size > MAX_BYTES:  # raised before its content is passed over
                raise tarfile.TarError(f"{member.name} has {member.size} bytes, more than {MAX_BYTES}")
            if member.isfile():
                yield member


@functools.lru_cache(maxsize=8)
def _stream(archive: Path, process: int) -> tuple[gzip.GzipFile, threading.Lock]:
    """The unzipped stream of an archive, one for each process (a forked one must not share its position)."""
    return gzip.open(archive), threading.Lock()
