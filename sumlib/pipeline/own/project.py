"""What a user's project says: `project.yaml` in a folder of images and masks, every key with a default.

    leaves/
      images/         photographs of any kind; folders inside are fine
      masks/          or a COCO JSON
      unlabeled/      more photographs; without it the images themselves serve
      project.yaml    this file; none is needed where looking tells all

Paths are relative to the project's folder; `~` is the home folder. A project can be moved as a whole.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from sumlib.config.schema import Count, Fraction, OneOf, Positive, Range, Reader, Seed, shown
from sumlib.config.yaml_file import read_yaml
from sumlib.data.tasks import Task
from sumlib.model.checkpoint import MODEL_TYPES
from sumlib.pipeline.own.reading.files import is_image_name

FILE = "project.yaml"
IMAGE_FOLDERS = ("images", "imgs", "img", "image", "photos")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "gt")
UNLABELED_FOLDERS = ("unlabeled", "unlabelled")
FORMS = ("auto", "binary", "labels", "instances-in-folders", "coco")
KNOWN_TASKS = {task.title: int(task) for task in Task if task}
"""Tasks that have an id of their own; a name of the user's gets the next one, from 4 on."""

Form = Annotated[str, OneOf(FORMS)]
Label = Annotated[int, Range(0, 2**32 - 1)]


@dataclass(frozen=True)
class MaskSource:
    """One folder of masks, or one COCO JSON."""

    path: Path
    task: str = "auto"
    """salient, entity, part, a name of the user's own, or auto: to be found by looking."""
    form: Form = "auto"
    """How the masks lie and what their values mean."""


@dataclass(frozen=True)
class Project:
    """A user's folder and what is to be made of it. Paths are absolute."""

    folder: Path
    """Holds `project.yaml` and, below it, everything that is made."""
    images: Path
    """Folder of the labelled images; for a COCO JSON its `file_name` is looked for here, too."""
    masks: tuple[MaskSource, ...]
    """Where the masks are, by task."""
    unlabeled: Path | None = None
    """Folder of images without masks; None: the images themselves serve."""
    checkpoint: Path | None = None
    """SAM's weights to start from (.pth or .safetensors); None: none was found."""
    model: Annotated[str, OneOf(("auto", *MODEL_TYPES))] = "auto"
    """Architecture of the checkpoint; auto: by its shapes."""
    tuning: Annotated[str, OneOf(("auto", "full", "lora", "adapter", "decoder"))] = "auto"
    """Which weights are trained; auto: what the recipe can hold."""
    recipe: Annotated[str, OneOf(("auto", "cpu", "8gb", "16gb", "24gb", "80gb"))] = "auto"
    """Which machine it shall fit; auto: the one at hand."""
    held_out: float | Path | tuple[str, ...] = 0.2
    """Share of the images that is never trained on; or a folder with images and masks of its own; or names of
    images (a list, or a text file with one a line)."""
    init_from: Path | None = None
    """A trained model to go on from, or the folder of an earlier project; None: the checkpoint."""
    keep: float | str = "choose"
    """Share of the tuning that is kept when weights are mixed with SAM's afterwards (1: all), or choose."""
    learning_curve: tuple[int, ...] = ()
    """Numbers of masks to train with, to see how many are needed; 0 stands for all of them."""
    evaluate: tuple[tuple[str, Path], ...] = ()
    """More sets to be scored: (name, folder of the same kind as a project)."""
    seed: Seed = 0
    """Of the hold-out split and of training."""
    iterations: Count | None = None
    """Steps of training; None: by the recipe."""
    hours: Positive | None = None
    """Time that training may take; None: no limit."""
    bad_share: Fraction = 0.1
    """Share of bad items above which `sumlib check` fails."""
    contrast: Annotated[str, OneOf(("percentiles", "type"))] = "percentiles"
    """Images of more than 8 bits: stretched between their 0.1 and 99.9 percentiles, or by their type."""
    foreground: Label | None = None
    """Value of the foreground in binary masks; None: not zero, of two values the larger one."""
    ignore: tuple[Label, ...] | None = None
    """Values of label maps that are no mask, beside 0; None: 255 where no other label is above 199."""
    split: bool = False
    """Make each connected piece of a mask a mask of its own."""
    crowd: Annotated[str, OneOf(("auto", "masks", "skip"))] = "auto"
    """Annotations with iscrowd = 1; auto: masks where most annotations of the file are such."""

    @property
    def file(self) -> Path:
        """Where `project.yaml` is, or would be."""
        return self.folder / FILE


SIMPLE = ("model", "tuning", "recipe", "seed", "iterations", "hours", "bad_share", "contrast", "foreground")
SIMPLE += ("ignore", "split", "crowd")
"""Keys that need no more than their type."""
KEYS = (*(item.name for item in fields(Project) if item.name != "folder"), "form", "task")


def read_project(folder: str | Path) -> Project:
    """The project in a folder (or of a `project.yaml`); without that file all is found by looking.

    No image is opened. Raises FileNotFoundError for a missing folder, ConfigError for an unknown key or
    value, and where images or masks cannot be found; the message names the file and what to do. A missing
    checkpoint is no error here: `check` tells.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.name == FILE and not folder.is_dir():
        folder = folder.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; give the folder that holds your images")
    folder = Path(os.path.normpath(folder))
    reader, content = read_yaml(folder / FILE) if (folder / FILE).is_file() else (Reader(str(folder)), None)
    content = reader.mapping({} if content is None else content, "", KEYS, ())
    given = {key: value for key, value in content.items() if value is not None}
    hints = get_type_hints(Project, include_extras=True)
    values = {key: reader.value(hints[key], given[key], key) for key in SIMPLE if key in given}
    look = _Look(reader, folder, given)
    sources = look.masks()
    return Project(
        folder=folder,
        images=look.images(sources),
        masks=sources,
        unlabeled=look.unlabeled(),
        checkpoint=look.checkpoint(),
        held_out=look.held_out(),
        init_from=look.path("init_from"),
        keep=look.keep(),
        learning_curve=look.learning_curve(),
        evaluate=look.evaluate(),
        **values,
    )


class _Look:
    """Reads the keys that name files, and looks for what they do not say."""

    def __init__(self, reader: Reader, folder: Path, given: dict[str, Any]):
        self.reader, self.folder, self.given = reader, folder, given

    def path(self, key: str, value: Any = None) -> Path | None:
        """The path that a key gives, or that ``value`` is; None if the key is not there."""
        value = self.given.get(key) if value is None else value
        if value is None:
            return None
        try:
            path = Path(self.reader.value(str, value, key)).expanduser()
        except RuntimeError as error:  # ~somebody
            self.reader.fail(f"{key} is {shown(value)}: {error}; write the whole path")
        return Path(os.path.normpath(self.folder / path))

    def existing(self, key: str, value: Any = None, file: bool = False) -> Path | None:
        """The same, which must be a folder (or, with ``file``, a folder or a file)."""
        path = self.path(key, value)
        if path is None or path.is_dir() or (file and path.is_file()):
            return path
        what = "folder or file" if file else "folder"
        if path.exists():
            self.reader.fail(f"{key}: {path} is no {what}; give one")
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; put it there or correct {key}"
        self.reader.fail(f"{key}: {path}: there is no such {what}{hint}")

    def first(self, names: tuple[str, ...]) -> Path | None:
        """The first of the folders that is there, whatever the case of its letters."""
        there = {entry.name.lower(): entry for entry in sorted(self.folder.iterdir()) if entry.is_dir()}
        return next((there[name] for name in names if name in there), None)

    def masks(self) -> tuple[MaskSource, ...]:
        """The sources of masks, with their tasks and forms."""
        given = self.given.get("masks")
        if isinstance(given, Mapping):
            if "task" in self.given:
                self.reader.fail("task is given beside masks by task; remove the key task")
            pairs = [(task, one) for task, many in given.items() for one in self._listed(task, many)]
            if not pairs:
                self.reader.fail("masks holds nothing; write task: folder, or a folder")
            return tuple(
                MaskSource(self.existing(f"masks.{task}", one, True), self._task(task), self._form(task))
                for task, one in pairs
            )
        path = self.existing("masks", file=True) or self.first(MASK_FOLDERS) or self._only_json()
        if path is None:
            self.reader.fail(
                f"no masks were found in {self.folder}: put them into masks/ (or one COCO JSON there), "
                f"or name their place with `masks:` in {FILE}"
            )
        return (MaskSource(path, self._task(self.given.get("task", "auto")), self._form(None)),)

    def _listed(self, task: Any, value: Any) -> list:
        """The places of one task's masks: a text, or several."""
        if not value or not isinstance(value, (str, list)):
            self.reader.fail(
                f"masks.{task} is {shown(value)}; allowed: a folder, a COCO JSON, or a list of them"
            )
        return value if isinstance(value, list) else [value]

    def _task(self, name: Any) -> str:
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d_][\w -]{0,39}", name):
            known = ", ".join(KNOWN_TASKS)
            self.reader.fail(
                f"task is {shown(name)}; allowed: {known}, or a name of your own that begins with a letter"
            )
        if name == Task.UNSPECIFIED.title:
            self.reader.fail(
                f"task is {name}, which is for masks of no kind; choose {', '.join(KNOWN_TASKS)} or a name"
            )
        return name

    def _form(self, task: str | None) -> str:
        form = self.given.get("form", "auto")
        if isinstance(form, Mapping):
            allowed = list(self.given["masks"]) if isinstance(self.given.get("masks"), Mapping) else []
            form = self.reader.mapping(form, "form", allowed, ()).get(task, "auto")
        return self.reader.value(Form, form, "form")

    def _only_json(self) -> Path | None:
        files = sorted(p for p in self.folder.glob("*.json") if not p.name.startswith("."))
        if len(files) > 1:
            names = ", ".join(p.name for p in files[:5])
            self.reader.fail(f"{self.folder} holds several JSON files ({names}): say which with `masks:`")
        return files[0] if files else None

    def images(self, sources: tuple[MaskSource, ...]) -> Path:
        """The folder of the images; of a COCO JSON without one the project's folder."""
        path = self.existing("images") or self.first(IMAGE_FOLDERS)
        if path is not None:
            return path
        if all(source.path.is_file() for source in sources) or _holds_images(self.folder):
            return self.folder
        self.reader.fail(
            f"no images were found in {self.folder}: put them into images/, "
            f"or name their folder with `images:` in {FILE}"
        )

    def unlabeled(self) -> Path | None:
        return self.existing("unlabeled") or self.first(UNLABELED_FOLDERS)

    def checkpoint(self) -> Path | None:
        """The checkpoint that is named, else the only one in the folder."""
        if (path := self.path("checkpoint")) is not None:
            return path
        files = [p for p in sorted(self.folder.iterdir()) if p.suffix in (".pth", ".pt", ".safetensors")]
        return files[0] if len(files) == 1 else None

    def held_out(self) -> float | Path | tuple[str, ...]:
        value = self.given.get("held_out", Project.held_out)
        if isinstance(value, list):
            return self.reader.value(tuple[str, ...], value, "held_out")
        if not isinstance(value, str):
            value = self.reader.value(Fraction, value, "held_out")
            return value if value < 1 else self.reader.fail("held_out is 1; nothing would be trained on")
        path = self.existing("held_out", value, file=True)
        if path.is_dir():
            return path
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            self.reader.fail(f"held_out: {path} is no text file in UTF-8; write one name of an image a line")
        names = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        return names or self.reader.fail(f"held_out: {path} names no image; write one name a line")

    def keep(self) -> float | str:
        value = self.given.get("keep", Project.keep)
        if isinstance(value, str) and value != "choose":
            self.reader.fail(f"keep is {shown(value)}; allowed: choose, or a number from 0 to 1")
        return value if isinstance(value, str) else self.reader.value(Fraction, value, "keep")

    def learning_curve(self) -> tuple[int, ...]:
        value = self.given.get("learning_curve", [])
        if value == []:
            return ()
        if not isinstance(value, list):
            self.reader.fail(f"learning_curve is {shown(value)}; allowed: a list such as [10, 30, all]")
        counts = [0 if one == "all" else self.reader.value(Count, one, "learning_curve") for one in value]
        return tuple(dict.fromkeys(counts))

    def evaluate(self) -> tuple[tuple[str, Path], ...]:
        value = self.given.get("evaluate", {})
        if not isinstance(value, Mapping):
            self.reader.fail(f"evaluate is {shown(value)}; allowed: a name and a folder for each set")
        return tuple(
            (self.reader.value(str, name, "evaluate"), self.existing(f"evaluate.{name}", folder))
            for name, folder in value.items()
        )


def _holds_images(folder: Path) -> bool:
    return any(is_image_name(entry.name) for entry in folder.iterdir())


def task_ids(project: Project, found: Sequence[str] | None = None) -> dict[str, int]:
    """Name -> id of the tasks of a project: those of SAM's paper keep theirs, others follow from 4 on.

    ``found`` are the tasks of the sources once looking has told those that are "auto".
    """
    names = dict.fromkeys(found or [source.task for source in project.masks])
    own = [name for name in names if name not in KNOWN_TASKS]
    ids = KNOWN_TASKS | {name: len(Task) + number for number, name in enumerate(own)}
    return {name: ids[name] for name in names}
