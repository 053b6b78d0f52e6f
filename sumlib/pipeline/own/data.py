"""From a project to data: images with their masks to train on and held out, and unlabeled images.

Nothing but the names of files is read, and a few masks to see what their values mean: 250,000 images open in
seconds. `sumlib.pipeline.own.check` reads them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from sumlib.pipeline.own.dataset import CACHE, Facts, OwnDataset, OwnEntry, entry, read_unlabeled
from sumlib.pipeline.own.project import KNOWN_TASKS, MaskSource, Project, read_project, task_ids
from sumlib.pipeline.own.reading.files import Listed, list_images, listed
from sumlib.pipeline.own.reading.masks import Rules
from sumlib.pipeline.own.reading.problems import Problem
from sumlib.pipeline.own.sources import Found, list_sources, look_at, rules_of
from sumlib.pipeline.own.split import hold_out, same_bytes, same_picture


@dataclass(frozen=True)
class OwnData:
    """The data of a project."""

    train: OwnDataset
    """Images to train on, with their masks."""
    held_out: OwnDataset
    """Images that are never trained on, nor used as unlabeled ones."""
    unlabeled: OwnDataset
    """Images without masks."""
    problems: list[Problem]
    """What was left out or is worth knowing, as far as names tell; `check` finds the rest."""
    understood: list[str]
    """What was understood by looking, and how to say otherwise, in words."""
    tasks: dict[str, int]
    """Id of each task, by name."""
    images: int = 0
    """Images in the folder, with masks or without."""
    rules: Rules = field(default_factory=Rules)

    def by_task(self, dataset: OwnDataset) -> dict[str, OwnDataset]:
        """The samples of ``train`` or ``held_out`` by task name; every one of them has one task."""
        parts = {name: dataset.of_task(number) for name, number in self.tasks.items()}
        return {name: part for name, part in parts.items() if len(part)}


def open_own(project: Project) -> OwnData:
    """The data of a project, without opening its images.

    Raises ValueError where nothing is found that could be trained on, where a JSON is no COCO file, or a
    name in `held_out` is of no image; FileNotFoundError for a folder that has gone.
    """
    images, foreign, sources = list_sources(project)
    found = [look_at(project, source, images) for source in sources]
    known = {image.path for image in images}
    more = dict.fromkeys(image for one in found for image in one.reads if image not in known)
    images += [listed(path, project.folder) for path in more]  # only a JSON knows them
    tasks = task_ids(project, [one.task for one in found])
    keys = {image.path: image.key for image in images}
    entries = _entries(found, tasks, keys)
    if not entries:
        raise ValueError(_nothing(project, images, sources, found))
    labelled = {one.files[0] for one in entries}
    marks = same_bytes([image for image in images if image.path in labelled])
    held, extra = _held_out(project, images, entries, marks, tasks)
    train, kept = ([one for one in entries if (one.files[0] in held) == side] for side in (False, True))
    copies: set[Path] = set()
    if extra is not None:
        kept, copies = extra.train.entries, _copies(extra.train.entries, entries)
        train = [one for one in train if one.files[0] not in copies]
    unlabeled, problems = _unlabeled(project, images, kept)
    name, facts = project.folder.name, Facts(project.folder / CACHE)
    return OwnData(
        train=OwnDataset(name, train, facts),
        held_out=OwnDataset(f"{name}-held-out", kept, facts),
        unlabeled=OwnDataset(f"{name}-unlabeled", unlabeled, facts),
        problems=[*_problems(found, images, foreign, labelled, marks, copies), *problems],
        understood=_said(project, sources, found, tasks),
        tasks=tasks,
        images=len(images),
        rules=rules_of(project, "binary"),
    )


def _problems(
    found: Sequence[Found],
    images: Sequence[Listed],
    foreign: Sequence[Path],
    labelled: set[Path],
    marks: Mapping[Path, str],
    copies: set[Path],
) -> list[Problem]:
    """What names and bytes tell of the labelled images."""
    problems = [problem for one in found for problem in one.problems]
    unclear = {problem.name for problem in problems if problem.kind == "duplicate"}
    problems += [_foreign(path) for path in foreign]
    problems += [Problem("same picture", p.stem, p, "both are on one side of the split") for p in marks]
    problems += [Problem("held out", p.stem, p, "is in held_out, too") for p in sorted(copies)]
    return problems + [
        Problem("without mask", image.key, image.path, "has no mask")
        for image in images
        if image.path not in labelled and image.key not in unclear
    ]


def _foreign(path: Path) -> Problem:
    return Problem("foreign", path.stem, path, "is not read; save it as PNG or JPEG")


def open_sets(project: Project, tasks: Mapping[str, int] | None = None) -> dict[str, OwnDataset]:
    """The extra evaluation sets of a project, by name: folders that look like a project themselves.

    ``tasks`` are those of the project's data; None: they are looked for. A set without a `project.yaml` of
    its own has the first of them. The id of a task that the project does not have is 0, unless it is one of
    `KNOWN_TASKS`.
    """
    if tasks is None and project.evaluate:
        tasks = open_own(project).tasks
    return {name: _as_set(project, folder, tasks).train for name, folder in project.evaluate}


def _as_set(project: Project, folder: Path, tasks: Mapping[str, int]) -> OwnData:
    """A folder with images and masks as one set, nothing of it held out."""
    own = replace(read_project(folder), held_out=0.0)
    if not own.file.is_file():
        first = next(iter(tasks))
        own = replace(own, masks=tuple(replace(source, task=first) for source in own.masks))
        shared = ("foreground", "ignore", "split", "crowd", "contrast")
        own = replace(own, **{key: getattr(project, key) for key in shared})
    data = open_own(own)
    ids = {number: (KNOWN_TASKS | tasks).get(name, 0) for name, number in data.tasks.items()}
    entries = [replace(one, task=ids[one.task]) for one in data.train.entries]
    return replace(data, train=OwnDataset(f"{project.folder.name}-{folder.name}", entries, data.train.facts))


def _entries(found: Sequence[Found], tasks: dict[str, int], keys: dict[Path, str]) -> list[OwnEntry]:
    """An entry for each image and task; those of an image lie together."""
    rows: dict[str, list[OwnEntry]] = defaultdict(list)
    for one in found:
        suffix = f" ({one.task})" if len(tasks) > 1 else ""
        for image, (files, read) in one.reads.items():
            key = keys.get(image, image.stem)
            rows[key].append(entry(key + suffix, tasks[one.task], files, read))
    entries, taken = [], set()
    for key in sorted(rows):
        for number, one in enumerate(rows[key], 1):
            name = one.name if one.name not in taken else f"{one.name} {number}"
            taken.add(name)
            entries.append(replace(one, name=name))
    return entries


def _said(
    project: Project, sources: Sequence[MaskSource], found: Sequence[Found], tasks: dict[str, int]
) -> list[str]:
    """What was understood of each source."""
    lines = []
    for source, one in zip(sources, found):
        place = (
            source.path.relative_to(project.folder)
            if source.path.is_relative_to(project.folder)
            else source.path
        )
        why = "" if source.task != "auto" else "; otherwise say `task: ...`"
        kind = f"task {one.task} (id {tasks[one.task]}{why})"
        lines.append(f"{place}: {one.text}; {kind}")
    return lines


def _nothing(
    project: Project, images: Sequence[Listed], sources: Sequence[MaskSource], found: Sequence[Found]
) -> str:
    """Why no image has a mask."""
    where = " and ".join(str(source.path) for source in sources)
    orphans = [problem for one in found for problem in one.problems if problem.kind == "no image"]
    hint = ""
    if images and orphans:
        hint = (
            f": an image is called {images[0].path.name}, a mask {orphans[0].path.name}; give both one name"
        )
    return f"{where}: no mask belongs to any of the {len(images)} images in {project.images}{hint}"


# ---- what is held out, and what is unlabeled ----------------------------------------------------


def _held_out(
    project: Project,
    images: Sequence[Listed],
    entries: Sequence[OwnEntry],
    marks: Mapping[Path, str],
    tasks: Mapping[str, int],
) -> tuple[set[Path], OwnData | None]:
    """Images that are held out, or the data of a folder that is."""
    if isinstance(project.held_out, Path):
        return set(), _as_set(project, project.held_out, tasks)
    of_image: dict[str, set[int]] = defaultdict(set)
    for one in entries:
        of_image[str(one.files[0])].add(one.task)
    names = {str(image.path): image.key for image in images}
    groups = {names.get(str(path), str(path)): mark for path, mark in marks.items()}
    if isinstance(project.held_out, tuple):
        held = _named(project, project.held_out, [Path(path) for path in of_image], names)
        twins = {marks[path] for path in held if path in marks}
        return held | {path for path, mark in marks.items() if mark in twins}, None
    keyed = {names.get(path, path): found for path, found in of_image.items()}
    chosen = hold_out(keyed, project.held_out, project.seed, groups)
    held = {Path(path) for path in of_image if names.get(path, path) in chosen}
    return held, None


def _named(project: Project, wanted: Sequence[str], paths: Sequence[Path], keys: dict[str, str]) -> set[Path]:
    """The labelled images that a list names, with or without suffix. Raises ValueError for others."""
    table: dict[str, Path] = {}
    for path in paths:
        key = keys.get(str(path), path.stem)
        table |= dict.fromkeys((path.stem, path.name, key, key + path.suffix), path)
    unknown = [name for name in wanted if name not in table]
    if unknown:
        near = get_close_matches(unknown[0], table, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(
            f"{project.file}: held_out names {unknown[0]}{more}, which is no image with a mask{hint}"
        )
    return {table[name] for name in wanted}


def _copies(held: Iterable[OwnEntry], others: Iterable[OwnEntry]) -> set[Path]:
    """Images of ``others`` that are byte for byte one of ``held``."""
    first = {one.files[0] for one in held}
    second = {one.files[0] for one in others}
    marks = same_bytes([listed(path) for path in sorted(first | second)])
    known = {marks[path] for path in first if path in marks}
    return {path for path in second if path in first or marks.get(path) in known}


def _unlabeled(
    project: Project, images: Sequence[Listed], held: Sequence[OwnEntry]
) -> tuple[list[OwnEntry], list[Problem]]:
    """The unlabeled images without those that are held out, which are counted."""
    problems = []
    pictures = list(images)
    if project.unlabeled is not None and project.unlabeled != project.images:
        pictures, foreign = list_images(project.unlabeled)
        problems += [_foreign(path) for path in foreign]
        if not pictures:
            text = "holds no image; the labelled images serve as unlabeled ones"
            problems.append(Problem("unlabeled", project.unlabeled.name, project.unlabeled, text))
            pictures = list(images)
    own = [listed(path) for path in dict.fromkeys(one.files[0] for one in held)]
    leaks = _leaks(pictures, own)
    copies = leaks - {file.path for file in own}  # that the images themselves are held out is no news
    problems += [Problem("held out", p.stem, p, "is a held-out image") for p in sorted(copies)]
    rules = rules_of(project, "none")
    taken: set[str] = set()
    entries = []
    for image in pictures:
        if image.path in leaks:
            continue
        name = image.key if image.key not in taken else image.key + image.path.suffix
        taken.add(name)
        entries.append(entry(name, 0, (image.path,), partial(read_unlabeled, image.path, rules)))
    return entries, problems


def _leaks(files: Sequence[Listed], held: Sequence[Listed]) -> set[Path]:
    """Files that are held-out images: the same file, the same bytes, or one name and the same picture."""
    paths, sizes = {file.path for file in held}, {file.size for file in held}
    by_stem = defaultdict(list)
    for file in held:
        by_stem[file.path.stem].append(file.path)
    leaks = {file.path for file in files if file.path in paths}
    suspects = [file for file in files if file.path not in paths and file.size in sizes]
    marks = same_bytes([*suspects, *held])
    known = {marks[path] for path in paths if path in marks}
    leaks |= {file.path for file in suspects if marks.get(file.path) in known}
    for file in files:
        if file.path not in leaks and any(
            same_picture(file.path, p) for p in by_stem.get(file.path.stem, ())
        ):
            leaks.add(file.path)
    return leaks
