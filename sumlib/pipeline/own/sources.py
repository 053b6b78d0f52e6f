"""Where a project's masks lie, what they mean, and which image each belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sumlib.pipeline.own.dataset import read_coco, read_files, readers_code
from sumlib.pipeline.own.project import MaskSource, Project
from sumlib.pipeline.own.reading.annotations import read_annotations
from sumlib.pipeline.own.reading.files import Listed, Pairing, list_images, looks_like_mask, pair
from sumlib.pipeline.own.reading.masks import Rules, understand
from sumlib.pipeline.own.reading.problems import Problem


@dataclass
class Found:
    """What one source of masks holds."""

    text: str
    task: str
    reads: dict[Path, tuple[tuple[Path, ...], partial]] = field(default_factory=dict)
    """By image: files and how they are read."""
    problems: list[Problem] = field(default_factory=list)


def list_sources(project: Project) -> tuple[list[Listed], list[Path], list[MaskSource]]:
    """Images of a project, pictures that are not read, and the sources of masks.

    Folders of masks and of unlabeled images inside the folder of images are none of its images.
    """
    sources = [_inner_json(project, source) for source in project.masks]
    images, foreign = list_images(project.images, deep=project.images != project.folder)
    apart = [s.path for s in sources if s.path.is_dir()] + [project.unlabeled, project.held_out]
    apart = [p for p in apart if isinstance(p, Path) and p != project.images and p.is_dir()]
    images = [i for i in images if not any(i.path.is_relative_to(p) for p in apart)]
    if any(source.path == project.images for source in sources):
        images = [image for image in images if not looks_like_mask(image.key)]
    return images, foreign, sources


def _inner_json(project: Project, source: MaskSource) -> MaskSource:
    """A folder that holds one JSON and no mask pictures means that JSON."""
    if source.path.is_dir() and source.form in ("auto", "coco"):
        files = [path for path in sorted(source.path.glob("*.json")) if not path.name.startswith(".")]
        pictures = list_images(source.path, deep=source.path != project.folder)[0] if len(files) == 1 else []
        if source.path == project.images:
            pictures = [picture for picture in pictures if looks_like_mask(picture.key)]
        if len(files) == 1 and not pictures:
            return replace(source, path=files[0])
    return source


def look_at(project: Project, source: MaskSource, images: Sequence[Listed]) -> Found:
    """Look what a source holds and how it is to be read."""
    if source.path.is_file():
        if source.form not in ("auto", "coco"):
            raise ValueError(f"{source.path}: is a file, but form is {source.form}; give a folder of masks")
        return _coco_source(project, source, images)
    if source.form == "coco":
        raise ValueError(f"{source.path}: is a folder, but form is coco; give the JSON file")
    return _folder_source(project, source, images)


def _coco_source(project: Project, source: MaskSource, images: Sequence[Listed]) -> Found:
    folders = dict.fromkeys([project.images, project.folder, source.path.parent])
    content = read_annotations(source.path, images, folders, project.crowd)
    found = Found(content.text, "entity" if source.task == "auto" else source.task)
    found.problems = content.problems
    listed = {image.path for image in images}
    rules = rules_of(project, "coco")
    for image, segmentations in content.by_image.items():
        if not segmentations:
            continue
        if image not in listed and not image.is_file():
            reason = (
                f"is missing, but {source.path.name} has {len(segmentations)} annotations of it; restore it"
            )
            found.problems.append(Problem("no image", image.stem, image, reason, len(segmentations)))
            continue
        read = partial(read_coco, image, source.path, segmentations, content.sizes[image], rules)
        found.reads[image] = ((image,), read)
    return found


def _folder_source(project: Project, source: MaskSource, images: Sequence[Listed]) -> Found:
    files, _ = list_images(source.path, deep=source.path != project.folder)
    if source.path == project.images:
        files = [file for file in files if looks_like_mask(file.key)]
    if not files:
        several = ", ".join(path.name for path in sorted(source.path.glob("*.json"))[:5])
        hint = f"it has {several}: say which with `masks:`" if several else "put the masks there"
        raise ValueError(f"{source.path}: holds no mask that can be read; {hint}")
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
    found = Found(_layout(pairing, several) + meaning.text, source.task)
    if source.task == "auto":
        found.task = "entity" if many else "salient"
    reason = f"there is no image of that name in {project.images}; restore it"
    found.problems += [Problem("no image", file.key, file.path, reason) for file in pairing.orphans]
    by_key = {image.key: image.path for image in images}
    rules = rules_of(project, meaning.form)
    for key, own in pairing.masks.items():
        if key in pairing.ambiguous:
            names = " and ".join(image.path.name for image in pairing.ambiguous[key])
            reason = f"{names} share a name: which one {own[0].path.name} is of is not clear; rename one"
            found.problems.append(Problem("duplicate", key, by_key[key], reason, len(own)))
            continue
        paths = tuple(file.path for file in own)
        found.reads[by_key[key]] = ((by_key[key], *paths), partial(read_files, by_key[key], paths, rules))
    return found


def _layout(pairing: Pairing, several: int) -> str:
    """How masks lie, in words."""
    if pairing.in_folders:
        return "a folder of masks for each image; "
    loose = ", paired without words such as `mask` in their names" if pairing.loose else ""
    return (
        f"several files an image ({several} images){loose}; " if several else loose[2:] + "; " * bool(loose)
    )


def rules_of(project: Project, form: str) -> Rules:
    """How files of a project are read."""
    return Rules(form, project.foreground, project.ignore, project.split, project.contrast, readers_code())
