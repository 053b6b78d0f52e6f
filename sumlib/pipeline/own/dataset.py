"""Samples of a user's project: read on access, checked once, with task ids of the user's own."""

import functools
import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from sumlib.base.code import code_hash
from sumlib.base.files import write_text
from sumlib.base.masks import connected_components, longest_side_size
from sumlib.base.parallel import processes
from sumlib.base.progress import with_bar
from sumlib.data.dataset import BadSample, Dataset, Entry, Loaded, Sample
from sumlib.data.images import BadSampleError
from sumlib.data.tasks import Task
from sumlib.pipeline.own.reading.annotations import Segmentation, mask_of
from sumlib.pipeline.own.reading.masks import Rules, read_masks, upright
from sumlib.pipeline.own.reading.pictures import Picture, read_picture
from sumlib.pipeline.own.reading.problems import BadFile, kind_of

LARGE = 0.95
"""Share of the image above which a mask is taken to be inverted by mistake."""
SIDES = (64, 256, 512, 768, 1024)
"""Input sides of models, in pixels."""
BLOCK = 256
"""Images that a killed check does not read again."""
CACHE = Path(".sumlib") / "checked.json"
"""Below a project's folder; may be deleted at any time."""


@dataclass(frozen=True)
class Reading:
    """What was read of one image."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    masks: np.ndarray
    """(M, H, W) bool."""
    left_out: dict[str, BadSampleError] = field(default_factory=dict)
    """Why, by mask file or annotation."""
    notes: tuple[tuple[str, str], ...] = ()
    """(kind, text) of what is kept and worth knowing."""


@dataclass(frozen=True)
class OwnEntry(Entry):
    """An entry with its task id and the files that it is read from."""

    task: int = 0
    files: tuple[Path, ...] = ()


class OwnDataset(Dataset):
    """A `Dataset` whose samples may be of several tasks, also of ids from 4 on.

    ``task`` is the id that all samples share, 0 where they have several. `check` remembers what it found by
    path, size and time of the files, for each image by itself, in `CACHE` of the project.
    """

    def __init__(self, name: str, entries: Sequence[OwnEntry], facts: "Facts"):
        super().__init__(name, Task.UNSPECIFIED, entries)
        self.facts = facts
        tasks = {entry.task for entry in entries}
        self.task = _task(tasks.pop()) if len(tasks) == 1 else Task.UNSPECIFIED

    @property
    def entries(self) -> list[OwnEntry]:
        """In order of the samples."""
        return list(self._entries)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._subset(self._entries[index])
        sample: Sample = super().__getitem__(index)
        return replace(sample, task=_task(self._entries[index].task))

    def check(self, workers: int | None = None) -> list[BadSample]:
        """Read every sample once, unless it is known, and return the bad ones."""
        for entry, fact in zip(self._entries, self.facts.of(self._entries, workers or processes())):
            if fact["bad"]:
                path, reason, _ = fact["bad"]
                self._bad[entry.name, ""] = BadSample(entry.name, Path(path), reason)
            for annotation, (path, reason, _) in fact["left_out"].items():
                title = f"{entry.name}#{annotation}"
                self._bad[entry.name, annotation] = BadSample(title, Path(path), reason)
        self._checked = True
        return self.bad

    def good(self, workers: int | None = None) -> "OwnDataset":
        """The usable samples only; runs `check` first if that was not done."""
        return super().good(workers or processes())

    def of_task(self, task: int) -> "OwnDataset":
        """The samples of one task id."""
        return self._subset([entry for entry in self._entries if entry.task == task])

    def _subset(self, entries: Sequence[OwnEntry]) -> "OwnDataset":
        subset = OwnDataset(self.name, entries, self.facts)
        subset._bad, subset._checked, subset._transient = dict(self._bad), self._checked, self._transient
        return subset


def _task(number: int) -> Task | int:
    """A task of the four that there are, or the number itself."""
    return Task(number) if number < len(Task) else number


# ---- reading ------------------------------------------------------------------------------------


def loaded(read: Callable[[], Reading]) -> Loaded:
    """What a `Dataset` wants to know of a reading."""
    reading = read()
    return reading.image, reading.masks, reading.left_out


def read_unlabeled(image: Path, rules: Rules) -> Reading:
    """An image without masks. Raises BadSampleError."""
    picture = read_picture(image, rules.contrast)
    return Reading(picture.pixels, np.zeros((0, *picture.pixels.shape[:2]), bool), notes=picture.notes)


def read_files(image: Path, masks: tuple[Path, ...], rules: Rules) -> Reading:
    """An image and the masks of its files. Raises BadSampleError if no mask is left."""
    picture = read_picture(image, rules.contrast)
    gathered = _Gathered(image, picture, rules)
    for path in masks:
        try:
            gathered.add(path.name, path, read_masks(path, rules))
        except BadSampleError as error:
            gathered.left_out[path.name] = error
    return gathered.reading(masks[0])


def read_coco(
    image: Path,
    json_path: Path,
    segmentations: list[Segmentation],
    size: tuple[int, int] | None,
    rules: Rules,
) -> Reading:
    """An image and the masks of its annotations; ``size`` is the one that the JSON states.

    Raises BadSampleError if the image has another size, or no mask is left.
    """
    if not segmentations:
        raise BadFile(json_path, f"holds no annotation of {image}; it serves as unlabeled", "without mask")
    picture = read_picture(image, rules.contrast)
    real = picture.pixels.shape[:2]
    size = tuple(size or real)
    if size not in (real, real[::-1] if picture.orientation >= 5 else real):
        text = f"says that the image {image} is {size[0]} x {size[1]}, but it is {real[0]} x {real[1]}"
        raise BadFile(json_path, f"{text} (height x width); use the image that was labelled", "size")
    gathered = _Gathered(image, picture, rules)
    for name, segmentation in segmentations:
        try:
            mask, beyond = mask_of(segmentation, size, json_path, name)
            gathered.add(name, json_path, [mask])
            if beyond:
                gathered.notes.append(("beyond", f"annotation {name}"))
        except BadSampleError as error:
            gathered.left_out[name] = error
    return gathered.reading(json_path)


class _Gathered:
    """The masks of one image, those left out, and what is worth knowing."""

    def __init__(self, image: Path, picture: Picture, rules: Rules):
        self.image, self.picture, self.rules = image, picture, rules
        self.masks: list[np.ndarray] = []
        self.left_out: dict[str, BadSampleError] = {}
        self.notes: list[tuple[str, str]] = list(picture.notes)

    def add(self, name: str, path: Path, masks: list[np.ndarray]) -> None:
        """Take masks of a file or an annotation. Raises BadFile if they do not fit the image."""
        height, width = size = self.picture.pixels.shape[:2]
        for mask in masks:
            fitting = upright(mask, size, self.picture.orientation)
            if fitting is None:
                text = f"mask is {mask.shape[0]} x {mask.shape[1]}, but the image {self.image} is"
                text = f"{text} {height} x {width} (height x width); restore the pair that belongs together"
                raise BadFile(path, text, "size")
            mask, was_turned = fitting
            if was_turned:
                self._note("turned", path.name)
            elif self.picture.orientation != 1 and (height == width or self.picture.orientation < 5):
                self._note("turn unknown", self.image.name)
            for piece in _pieces(mask) if self.rules.split else [mask]:
                self._take(name, path, piece)

    def _take(self, name: str, path: Path, mask: np.ndarray) -> None:
        if mask.all():
            text = "mask covers the whole image; if it is inverted, say `foreground: 0`, else remove it"
            raise BadFile(path, text, "whole")
        if mask.mean() > LARGE:
            self._note("large", f"{name}: {mask.mean():.1%}")
        self.masks.append(mask)

    def _note(self, kind: str, text: str) -> None:
        if (kind, text) not in self.notes:
            self.notes.append((kind, text))

    def reading(self, path: Path) -> Reading:
        """All of it; raises the only reason, or BadFile, if no mask is left."""
        if self.masks:
            return Reading(self.picture.pixels, np.stack(self.masks), self.left_out, tuple(self.notes))
        if len(self.left_out) == 1:
            raise next(iter(self.left_out.values()))
        why = next(iter(self.left_out.values()), None)
        text = f"none of {len(self.left_out)} masks of the image {self.image} can be used"
        raise BadFile(path, f"{text}; the first: {why.reason if why else 'there is none'}", "no mask")


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    labels, areas = connected_components(mask)
    return [labels == number for number in range(1, len(areas) + 1)]


# ---- what is known of files ---------------------------------------------------------------------


class Facts:
    """What reading each image found, remembered by path, size and time of its files.

    A fact is {"size": [H, W], "areas": pixels of each mask, "sides": the smallest of `SIDES` at which it is
    still there (0: none), "bad": [path, reason, kind] or None, "left_out": {annotation: [path, reason,
    kind]}, "notes": [[kind, text]]}.
    """

    def __init__(self, file: Path | None):
        self.file = file
        self.known: dict[str, dict] = {}
        with suppress(OSError, ValueError, AttributeError):
            if file is not None:
                self.known = dict(json.loads(file.read_text(encoding="utf-8")).items())
        self.saved = len(self.known)

    def of(self, entries: Sequence[OwnEntry], workers: int = 1) -> list[dict[str, Any]]:
        """A fact for each entry; what is not known is read, on ``workers`` threads."""
        keys = [self._key(entry) for entry in entries]
        missing = [(key, entry) for key, entry in zip(keys, entries) if key not in self.known]
        found: dict[str, dict] = {}
        with ThreadPoolExecutor(workers) as pool:
            for start in with_bar(range(0, len(missing), BLOCK), "check", len(missing) > BLOCK):
                block = missing[start : start + BLOCK]
                new = dict(zip((key for key, _ in block), pool.map(self._look, (one for _, one in block))))
                found |= new
                self.known |= {key: fact for key, fact in new.items() if not fact["transient"]}
                if len(self.known) > self.saved * 1.1:  # the file is written as a whole
                    self._save()
            self._save()
        return [found.get(key) or self.known[key] for key in keys]

    def _save(self) -> None:
        if self.file is not None and len(self.known) > self.saved:
            self.saved = len(self.known)
            with suppress(OSError):  # a folder that cannot be written to is no error
                write_text(self.file, json.dumps(self.known))

    def _key(self, entry: OwnEntry) -> str:
        digest = hashlib.sha256(readers_code().encode() + pickle.dumps(entry.load))
        for path in entry.files:
            try:
                found = path.stat()
                digest.update(f"{path} {found.st_size} {found.st_mtime_ns}".encode())
            except OSError:
                digest.update(f"{path} none".encode())
        return digest.hexdigest()[:32]

    def _look(self, entry: OwnEntry) -> dict[str, Any]:
        fact = {"size": None, "areas": [], "sides": [], "bad": None, "left_out": {}, "notes": []}
        fact["transient"] = False
        try:
            reading = entry.load.args[0]()
        except BadSampleError as error:
            fact |= {"bad": _told(error), "transient": error.transient}
            return fact
        fact["size"] = list(reading.image.shape[:2])
        fact["areas"] = [int(mask.sum()) for mask in reading.masks]
        fact["sides"] = [next((s for s in SIDES if survives(mask, s)), 0) for mask in reading.masks]
        fact["left_out"] = {name: _told(error) for name, error in reading.left_out.items()}
        fact["notes"] = [list(note) for note in reading.notes]
        return fact


def _told(error: BadSampleError) -> list[str]:
    return [str(error.path), error.reason, kind_of(error)]


def survives(mask: np.ndarray, side: int) -> bool:
    """Whether something is left of a mask (H, W) at the model's ``side`` (`sumlib.base.masks.framed_masks`).

    >>> mask = np.zeros((2000, 2000), bool)
    >>> mask[:3, :3] = True
    >>> survives(mask, 64), survives(mask, 2000)
    (False, True)
    """
    size = longest_side_size(*mask.shape, side)
    if size == mask.shape:
        return bool(mask.any())
    lines = []
    for old, new in zip(mask.shape, size):  # bilinear: two neighbours of each place, without smoothing
        place = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
        low = place.astype(int)
        lines.append((low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32)))
    (y0, y1, wy), (x0, x1, wx) = lines
    upper = mask[np.ix_(y0, x0)] * (1 - wx) + mask[np.ix_(y0, x1)] * wx
    lower = mask[np.ix_(y1, x0)] * (1 - wx) + mask[np.ix_(y1, x1)] * wx
    return bool((upper * (1 - wy[:, None]) + lower * wy[:, None] > 0.5).any())


@functools.cache
def readers_code() -> str:
    """Hash of the code that reads, and of Pillow's version."""
    return f"{code_hash(__name__)} {PIL.__version__}"


def entry(name: str, task: int, files: tuple[Path, ...], read: partial) -> OwnEntry:
    """An entry that reads ``files``, the first of which is the image, with ``read``."""
    return OwnEntry(name, files[0], partial(loaded, read), task, files)
