"""Data sets by name: `open_dataset("COIFT", root)` gives the same kind of samples from micro and real data.

Which sets there are, where they lie and how each is read stands in section `datasets` of params.yaml. A set
of a known layout is an entry there; a new layout is one file in `sumlib/data/layouts`, with a function that
takes the set's folder.
"""

import difflib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from sumlib.base.paths import PARAMS
from sumlib.config.params import load_datasets
from sumlib.data import layouts
from sumlib.data.dataset import BadSample, Dataset, Entry, Sample
from sumlib.data.groups import TASK_GROUPS
from sumlib.data.images import BadSampleError
from sumlib.data.tasks import Task

__all__ = [
    "REGISTRY",
    "TASK_GROUPS",
    "BadSample",
    "BadSampleError",
    "Dataset",
    "Layout",
    "Sample",
    "open_dataset",
]


@dataclass(frozen=True)
class Layout:
    """Where a data set lies under the root and how it is read."""

    folders: tuple[str, ...]
    """Relative to the root; the first that exists is read."""
    reader: str
    """Its function, "<file of sumlib/data/layouts>.<function>"."""
    task: Task
    """What kind of mask it holds."""
    first: int | None = None
    """Only this many samples, as the paper does."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function beside the folder."""

    def entries(self, folder: Path) -> list[Entry]:
        """The samples in `folder`.

        Raises ValueError for an unknown reader or option, and what the reader raises.
        """
        read = find_reader(self.reader)
        try:
            inspect.signature(read).bind(folder, **self.options)
        except TypeError as error:
            known = [name for name in inspect.signature(read).parameters if name != "root"]
            raise ValueError(
                f"layout {self.reader}: {error}; its options are {', '.join(known) or 'none'}"
            ) from None
        return read(folder, **self.options)[: self.first]


def find_reader(name: str) -> Callable[..., list[Entry]]:
    """The function of a layout, by "<file>.<function>". Raises ValueError with the nearest name."""
    file, _, function = name.partition(".")
    files = [module.name for module in pkgutil.iter_modules(layouts.__path__)]
    if file in files and function in (readers := _readers(file)):
        return readers[function]
    known = [f"{file}.{function}" for file in files for function in _readers(file)]
    raise ValueError(f"no layout is called {name!r}; {_hint(name, known)}")


def _readers(file: str) -> dict[str, Callable[..., list[Entry]]]:
    """The public functions of a file of `sumlib/data/layouts` that take the folder of a set."""
    module = import_module(f"{layouts.__name__}.{file}")
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and next(iter(inspect.signature(value).parameters), "") == "root"
    }


def read_registry(path: Path = PARAMS, roles: Iterable[str] | None = None) -> dict[str, Layout]:
    """Data set name -> its layout, of section `datasets` of `path`; of some `roles` only ("train", "test",
    ...).
    """
    return {
        name: Layout(entry.folders, entry.layout, Task[entry.task.upper()], entry.first, entry.options)
        for name, entry in load_datasets(path).items()
        if roles is None or entry.role in roles
    }


REGISTRY = read_registry()
"""Data set name -> its layout."""


def open_dataset(name: str, root: Path, registry: Mapping[str, Layout] = REGISTRY) -> Dataset:
    """The data set `name` of a registry under `root`, without reading any image.

    Raises ValueError for an unknown name, an empty or broken set, FileNotFoundError for a missing folder or
    file.
    """
    if name not in registry:
        raise ValueError(f"no data set is called {name!r}; {_hint(name, sorted(registry))}")
    layout = registry[name]
    folders = [Path(root) / folder for folder in layout.folders]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"{folders[0]}: folder of data set {name} is missing; put the data set there")
    entries = layout.entries(folder)
    if not entries:
        raise ValueError(f"{folder}: data set {name} holds no sample; unpack it again")
    return Dataset(name, layout.task, entries)


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
