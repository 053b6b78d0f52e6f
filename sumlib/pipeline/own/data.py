"""From a project to data: images with their masks to train on and held out, and unlabeled images.

Nothing but the names of files is read, and a few masks to see what their values mean: 250,000 images open in
seconds. `sumlib.pipeline.own.check` reads them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from sumlib.pipeline.own.dataset import (
    CACHE,
    Facts,
    OwnDataset,
    OwnEntry,
    entry,
    read_coco,
    read_files,
    read_unlabeled,
    readers_code,
)
from sumlib.pipeline.own.project import MaskSource, Project, read_project, task_ids
from sumlib.pipeline.own.reading.annotations import read_annotations
from sumlib.pipeline.own.reading.files import Listed, list_images, looks_like_mask, pair
from sumlib.pipeline.own.reading.masks import Rules, understand
from sumlib.pipeline.own.reading.problems import Problem
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


@dataclass
class _Found:
    """What one source of masks holds."""

    text: str
    task: str
    reads: dict[Path, tuple[tuple[Path, ...], partial]] = field(default_factory=dict)
    """By image: files and how they are read."""
    problems: list[Problem] = field(default_factory=list)


def open_own(project: Project) -> OwnData:
    """The data of a project, without opening its images.

    Raises ValueError where nothing is found that could be trained on, where a JSON is no COCO file, or a
    name in `held_out` is of no image; FileNotFoundError for a folder that has gone.
    """
    images, foreign, sources = _list(project)
    found = [_source(project, source, images) for source in sources]
    tasks = task_ids(project, {source.path: one.task for source, one in zip(sources, found)})
    keys = {image.path: image.key for image in images}
    entries = _entries(found, tasks, keys)
    if not entries:
        raise ValueError(_nothing(project, images, sources, found))
    problems = [problem for one in found for problem in one.problems]
    problems += [Problem("foreign", p.stem, p, "is not read; save it as PNG or JPEG") for p in foreign]
    facts = Facts(project.folder / CACHE)
    held, extra, text = _held_out(project, images, entries, tasks)
    train, kept = ([e for e in entries if (e.files[0] in held) == side] for side in (False, True))
    if extra is not None:
        kept, copies = extra.train.entries, _copies(extra.train.entries, entries)
        train = [e for e in train if e.files[0] not in copies]
        problems += [Problem("held out", e.name, e.path, "is in held_out, too") for e in entries
                     if e.files[0] in copies]  # fmt: skip
    unlabeled, more = _unlabeled(project, images, kept)
    labelled = {e.files[0] for e in entries}
    problems += [
        Problem("without mask", i.key, i.path, "has no mask") for i in images if i.path not in labelled
    ]
    name = project.folder.name
    return OwnData(
        train=OwnDataset(name, train, facts),
        held_out=OwnDataset(f"{name}-held-out", kept, facts),
        unlabeled=OwnDataset(f"{name}-unlabeled", unlabeled, facts),
        problems=problems + more,
        understood=[*_said(project, sources, found, tasks), *([text] if text else [])],
        tasks=tasks,
        images=len(images),
        rules=_rules(project, "binary"),
    )


def open_sets(project: Project) -> dict[str, OwnDataset]:
    """The extra evaluation sets of a project, by name: folders that look like a project themselves.

    A set without a `project.yaml` of its own has the first task of this project.
    """
    return {name: _as_set(project, folder).train for name, folder in project.evaluate}


def _as_set(project: Project, folder: Path) -> OwnData:
    """A folder with images and masks as one set, nothing of it held out."""
    own = replace(read_project(folder), held_out=0.0)
    if not own.file.is_file():
        first = project.masks[0].task
        own = replace(own, masks=tuple(replace(source, task=first) for source in own.masks))
        shared = ("foreground", "ignore", "split", "crowd", "contrast")
        own = replace(own, **{key: getattr(project, key) for key in shared})
    return open_own(own)


# ---- looking ------------------------------------------------------------------------------------


def _list(project: Project) -> tuple[list[Listed], list[Path], list[MaskSource]]:
    """Images of a project, pictures that are not read, and the sources of masks.

    Folders of masks and of unlabeled images inside the folder of images are none of its images.
    """
    sources = [_inner_json(source) for source in project.masks]
    images, foreign = list_images(project.images, deep=project.images != project.folder)
    apart = [s.path for s in sources if s.path.is_dir()] + [project.unlabeled, project.held_out]
    apart = [p for p in apart if isinstance(p, Path) and p != project.images and p.is_dir()]
    images = [i for i in images if not any(i.path.is_relative_to(p) for p in apart)]
    if any(source.path == project.images for source in sources):
        images = [image for image in images if not looks_like_mask(image.key)]
    return images, foreign, sources


def _inner_json(source: MaskSource) -> MaskSource:
    """A folder that holds one JSON and no pictures means that JSON."""
    if source.path.is_dir() and source.form in ("auto", "coco"):
        files = sorted(source.path.glob("*.json"))
        if len(files) == 1 and not list_images(source.path)[0]:
            return replace(source, path=files[0])
    return source


def _source(project: Project, source: MaskSource, images: Sequence[Listed]) -> _Found:
    """Look what a source holds and how it is to be read."""
    if source.path.is_file():
        if source.form not in ("auto", "coco"):
            raise ValueError(f"{source.path}: is a file, but form is {source.form}; give a folder of masks")
        return _coco_source(project, source, images)
    if source.form == "coco":
        raise ValueError(f"{source.path}: is a folder, but form is coco; give the JSON file")
    return _folder_source(project, source, images)


def _coco_source(project: Project, source: MaskSource, images: Sequence[Listed]) -> _Found:
    folders = dict.fromkeys([project.images, project.folder, source.path.parent])
    content = read_annotations(source.path, images, folders, project.crowd)
    found = _Found(content.text, "entity" if source.task == "auto" else source.task)
    found.problems = content.problems
    listed = {image.path for image in images}
    rules = _rules(project, "coco")
    for image, segmentations in content.by_image.items():
        if not segmentations:
            continue
        if image not in listed and not image.is_file():
            reason = (
                f"is missing, but {source.path.name} has {len(segmentations)} annotations of it; restore it"
            )
            found.problems.append(Problem("no image", image.stem, image, reason))
            continue
        read = partial(read_coco, image, source.path, segmentations, content.sizes[image], rules)
        found.reads[image] = ((image,), read)
    return found


def _folder_source(project: Project, source: MaskSource, images: Sequence[Listed]) -> _Found:
    files, _ = list_images(source.path)
    if source.path == project.images:
        files = [file for file in files if looks_like_mask(file.key)]
    pairing = pair(images, files)
    several = sum(len(own) > 1 for own in pairing.masks.values())
    if source.form == "instances-in-folders" and not pairing.in_folders:
        raise ValueError(
            f"{source.path}: form is instances-in-folders, but there is no folder with an image's name and "
            "masks in it; make one an image, or say `form: auto`"
        )
    given = "binary" if source.form == "instances-in-folders" else source.form
    meaning = understand([file.path for own in pairing.masks.values() for file in own], given)
    many = several or meaning.form == "labels" or project.split
    found = _Found(_layout(pairing, several) + meaning.text, source.task)
    if source.task == "auto":
        found.task = "entity" if many else "salient"
    reason = f"there is no image of that name in {project.images}; restore it"
    found.problems += [Problem("no image", file.key, file.path, reason) for file in pairing.orphans]
    by_key = {image.key: image.path for image in images}
    rules = _rules(project, meaning.form)
    for key, own in pairing.masks.items():
        if key in pairing.ambiguous:
            names = " and ".join(image.path.name for image in pairing.ambiguous[key])
            reason = f"{names} share a name: which one {own[0].path.name} is of is not clear; rename one"
            found.problems.append(Problem("duplicate", key, by_key[key], reason))
            continue
        paths = tuple(file.path for file in own)
        found.reads[by_key[key]] = ((by_key[key], *paths), partial(read_files, by_key[key], paths, rules))
    return found


def _layout(pairing, several: int) -> str:
    """How masks lie, in words."""
    if pairing.in_folders:
        return "a folder of masks for each image; "
    loose = ", paired without words such as `mask` in their names" if pairing.loose else ""
    return (
        f"several files an image ({several} images){loose}; " if several else loose[2:] + "; " * bool(loose)
    )


def _rules(project: Project, form: str) -> Rules:
    return Rules(form, project.foreground, project.ignore, project.split, project.contrast, readers_code())


def _entries(found: Sequence[_Found], tasks: dict[str, int], keys: dict[Path, str]) -> list[OwnEntry]:
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
    project: Project, sources: Sequence[MaskSource], found: Sequence[_Found], tasks: dict[str, int]
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
    project: Project, images: Sequence[Listed], sources: Sequence[MaskSource], found: Sequence[_Found]
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
    project: Project, images: Sequence[Listed], entries: Sequence[OwnEntry], tasks: dict[str, int]
) -> tuple[set[Path], OwnData | None, str]:
    """Images that are held out, or the data of a folder that is, and what to say of it."""
    if isinstance(project.held_out, Path):
        return set(), _as_set(project, project.held_out), f"held out: all of {project.held_out}"
    of_image: dict[str, set[int]] = defaultdict(set)
    for one in entries:
        of_image[str(one.files[0])].add(one.task)
    names = {str(image.path): image.key for image in images}
    marks = same_bytes([image for image in images if str(image.path) in of_image])
    groups = {names.get(str(path), str(path)): mark for path, mark in marks.items()}
    if isinstance(project.held_out, tuple):
        held = _named(project, project.held_out, [Path(path) for path in of_image], names)
        twins = {marks[path] for path in held if path in marks}
        return held | {path for path, mark in marks.items() if mark in twins}, None, ""
    keyed = {names.get(path, path): found for path, found in of_image.items()}
    chosen = hold_out(keyed, project.held_out, project.seed, groups)
    held = {Path(path) for path in of_image if names.get(path, path) in chosen}
    return held, None, ""


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
    marks = same_bytes([_listed(path) for path in first | second])
    known = {marks[path] for path in first if path in marks}
    return {path for path in second if path in first or marks.get(path) in known}


def _listed(path: Path) -> Listed:
    try:
        found = path.stat()
        return Listed(path, path.stem, found.st_size, found.st_mtime_ns)
    except OSError:
        return Listed(path, path.stem, -1, 0)


def _unlabeled(
    project: Project, images: Sequence[Listed], held: Sequence[OwnEntry]
) -> tuple[list[OwnEntry], list[Problem]]:
    """The unlabeled images without those that are held out, which are counted."""
    problems = []
    listed = list(images)
    if project.unlabeled is not None and project.unlabeled != project.images:
        listed, foreign = list_images(project.unlabeled)
        problems += [Problem("foreign", p.stem, p, "is not read; save it as PNG or JPEG") for p in foreign]
        if not listed:
            text = "holds no image; the labelled images serve as unlabeled ones"
            problems.append(Problem("unlabeled", project.unlabeled.name, project.unlabeled, text))
            listed = list(images)
    own = [_listed(path) for path in dict.fromkeys(one.files[0] for one in held)]
    leaks = _leaks(listed, own)
    problems += [Problem("held out", i.key, i.path, "is a held-out image") for i in listed if i.path in leaks]
    rules = _rules(project, "none")
    taken: set[str] = set()
    entries = []
    for image in listed:
        if image.path in leaks:
            continue
        name = image.key if image.key not in taken else image.key + image.path.suffix
        taken.add(name)
        entries.append(entry(name, 0, (image.path,), partial(read_unlabeled, image.path, rules)))
    return entries, problems


def _leaks(listed: Sequence[Listed], held: Sequence[Listed]) -> set[Path]:
    """Files that are held-out images: the same file, the same bytes, or one name and the same picture."""
    paths, sizes = {file.path for file in held}, {file.size for file in held}
    by_stem = defaultdict(list)
    for file in held:
        by_stem[file.path.stem].append(file.path)
    leaks = {file.path for file in listed if file.path in paths}
    suspects = [file for file in listed if file.path not in paths and file.size in sizes]
    marks = same_bytes([*suspects, *held])
    known = {marks[path] for path in paths if path in marks}
    leaks |= {file.path for file in suspects if marks.get(file.path) in known}
    for file in listed:
        if file.path not in leaks and any(
            same_picture(file.path, p) for p in by_stem.get(file.path.stem, ())
        ):
            leaks.add(file.path)
    return leaks
