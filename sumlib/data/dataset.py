"""What a data set is: lazily read samples, and the list of those that cannot be used."""

import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sumlib.data.images import BadSampleError
from sumlib.data.tasks import Task
from sumlib.data.verdicts import recall, remember

Loaded = tuple[np.ndarray, np.ndarray, dict[str, BadSampleError]]
"""Image (H, W, 3) uint8, masks (M, H, W) bool, and {annotation: why} of the masks that were left out."""


@dataclass(frozen=True)
class Sample:
    """One image and its masks."""

    name: str
    """Unique inside its data set."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB, EXIF-transposed."""
    masks: np.ndarray
    """(M, H, W) bool; (0, H, W) for unlabeled images."""
    task: Task
    """What kind of mask they are; its number is the id of the task prompt."""
    dataset: str
    """Name of the data set, e.g. "COIFT"."""


@dataclass(frozen=True)
class BadSample:
    """A sample, or one mask of a sample, that is left out."""

    name: str
    """The sample's name; "name#annotation" when only that mask is left out."""
    path: Path
    """The offending file."""
    reason: str
    """What is wrong and what to do about it."""


@dataclass(frozen=True)
class Entry:
    """Where one sample lies and how it is read. Made by the adapters, picklable."""

    name: str
    path: Path
    """The image file, or the archive that holds it."""
    load: Callable[[], Loaded]
    """Raises BadSampleError when nothing usable is there."""


class Dataset(Sequence[Sample]):
    """A lazy sequence of samples: files are opened on access only.

    Access to a bad sample raises BadSampleError, whose message names the file and the remedy. `check` reads
    everything once and lists what is bad; `good` is the data set without the bad samples.
    """

    def __init__(self, name: str, task: Task | int, entries: Sequence[Entry]):
        self.name, self.task = name, Task(task)
        self._entries = list(entries)
        self._bad: dict[tuple[str, str], BadSample] = {}  # by (sample, annotation or "")
        self._checked = False
        self._transient = False  # whether a sample is bad for a reason that may pass
        if len(set(self.names)) < len(self._entries):
            places: dict[str, Path] = {}
            for entry in self._entries:
                if entry.name in places:
                    both = f"{places[entry.name]} and {entry.path}"
                    raise ValueError(
                        f"data set {name}: two samples are called {entry.name!r}, {both}; "
                        "rename or remove one of them"
                    )
                places[entry.name] = entry.path

    @property
    def names(self) -> list[str]:
        """Sample names, in order."""
        return [entry.name for entry in self._entries]

    @property
    def bad(self) -> list[BadSample]:
        """What was found bad so far: by `check`, or by reading samples. In order of the names."""
        return [self._bad[key] for key in sorted(self._bad)]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index):
        """The sample at `index` (raises BadSampleError if it is bad), or a Dataset for a slice."""
        if isinstance(index, slice):
            return self._subset(self._entries[index])
        entry = self._entries[operator.index(index)]
        try:
            image, masks, left_out = entry.load()
        except BadSampleError as error:
            self._bad[entry.name, ""] = BadSample(entry.name, error.path, error.reason)
            self._transient |= error.transient
            raise
        for annotation, why in left_out.items():
            self._bad[entry.name, annotation] = BadSample(f"{entry.name}#{annotation}", why.path, why.reason)
        return Sample(entry.name, image, masks, self.task, self.name)

    def check(self, workers: int = 1) -> list[BadSample]:
        """Read every sample once, on `workers` threads, and return the bad ones (same as `bad`).

        A set whose files have not changed since it was read through is not read again
        (`sumlib.data.verdicts`), unless one could not be read for a reason that may pass.
        """
        loads = [entry.load for entry in self._entries]
        verdict = recall(self.name, loads)
        if verdict is None:
            self._read_all(workers)
            found = [(*key, str(b.path), b.reason) for key, b in sorted(self._bad.items())]
            if not self._transient:
                remember(self.name, loads, found)
        else:
            for name, annotation, path, reason in verdict:
                title = f"{name}#{annotation}" if annotation else name
                self._bad[name, annotation] = BadSample(title, Path(path), reason)
        self._checked = True
        return self.bad

    def _read_all(self, workers: int) -> None:
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(self._usable, range(len(self))))
        else:
            for index in range(len(self)):
                self._usable(index)

    def good(self, workers: int = 1) -> "Dataset":
        """The usable samples only; runs `check` first if that was not done. `bad` still lists the others."""
        if not self._checked:
            self.check(workers)
        return self._subset([entry for entry in self._entries if (entry.name, "") not in self._bad])

    def report(self) -> str:
        """A line that counts the bad samples and the masks left out so far, then a line for each."""
        samples = sum(not annotation for _, annotation in self._bad)
        lines = [f"{self.name}: {samples} bad samples, {len(self._bad) - samples} single masks left out"]
        return "\n".join(lines + [f"  {bad.name}: {bad.path}: {bad.reason}" for bad in self.bad])

    def _usable(self, index: int) -> bool:
        try:
            self[index]
        except BadSampleError:
            return False
        return True

    def _subset(self, entries: Sequence[Entry]) -> "Dataset":
        subset = Dataset(self.name, self.task, entries)
        subset._bad, subset._checked = dict(self._bad), self._checked
        subset._transient = self._transient
        return subset
