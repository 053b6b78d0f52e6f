"""COCO JSON as tools write it: what is good is read, what is wrong is listed."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from sumlib.data.layouts.coco import decode
from sumlib.pipeline.own.reading.files import Listed, nfc
from sumlib.pipeline.own.reading.problems import BadFile, Problem

Segmentation = tuple[str, object]
"""(annotation id, COCO's segmentation)."""


@dataclass
class Annotations:
    """The masks of a COCO JSON by the path of their image."""

    by_image: dict[Path, list[Segmentation]] = field(default_factory=dict)
    sizes: dict[Path, tuple[int, int] | None] = field(default_factory=dict)
    """(height, width) by the JSON; None where it does not say."""
    problems: list[Problem] = field(default_factory=list)
    count: int = 0
    """Annotations in the file."""
    text: str = ""
    """What was understood, in words."""


def read_annotations(
    path: Path, images: Sequence[Listed], folders: Iterable[Path], crowd: str = "auto"
) -> Annotations:
    """A COCO JSON; ``images`` are the files listed, ``folders`` where a `file_name` is looked for.

    A `file_name` may have folders in front, back slashes, or the name of another folder than the image is
    in. ``crowd`` says what annotations with iscrowd = 1 are: "masks", "skip", or "auto": masks where most
    annotations are such, as in the files of tools that mark every run-length code so. Raises ValueError if
    the file is no COCO file.
    """
    content = _content(path)
    found, place = Annotations(), {}
    lookup = _Lookup(images, folders)
    for record in content["images"]:
        if (id_ := _id(record, "id")) is None or not isinstance(record.get("file_name"), str):
            found.problems.append(_problem("dangling", path, "an image without id or file_name; mend it"))
            continue
        file = lookup.find(record["file_name"])
        if id_ in place and place[id_] != file:
            text = f"the id {id_} is of two images; annotations of it go to {place[id_].name}"
            found.problems.append(_problem("listed twice", path, text))
            continue
        place[id_] = file
        found.by_image.setdefault(file, [])
        found.sizes[file] = _size(record)
    with_masks = [a for a in content["annotations"] if isinstance(a, dict) and a.get("segmentation")]
    crowds = sum(bool(a.get("iscrowd")) for a in with_masks)
    skip = crowd == "skip" or (crowd == "auto" and 2 * crowds <= len(with_masks))
    _assign(found, path, content["annotations"], place, skip)
    found.count = len(content["annotations"])
    found.text = _text(with_masks, crowds, skip)
    return found


def _assign(found: Annotations, path: Path, annotations: list, place: Mapping, skip: bool) -> None:
    """Give every annotation to its image."""
    taken: Counter = Counter()
    for number, annotation in enumerate(annotations):
        id_ = _id(annotation, "id")
        name = str(number if id_ is None else id_)
        image = _id(annotation, "image_id")
        if image not in place:
            text = f"annotation {name} is of image {image!r}, which is not in the file; remove it"
            found.problems.append(_problem("dangling", path, text))
            continue
        if skip and annotation.get("iscrowd"):
            text = f"annotation {name} is a crowd; if it is a mask, say `crowd: masks`"
            found.problems.append(_problem("crowd", path, text))
            continue
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}.{taken[name]}"
        found.by_image[place[image]].append((name, annotation.get("segmentation")))


def _text(annotations: list[dict], crowds: int, skip: bool) -> str:
    """What is in the file, in words."""
    kinds = Counter(
        "polygons" if isinstance(a["segmentation"], list) else
        "compressed run lengths" if isinstance(a["segmentation"], dict)
        and isinstance(a["segmentation"].get("counts"), str) else "run lengths"
        for a in annotations
    )  # fmt: skip
    parts = ", ".join(f"{count} {name}" for name, count in kinds.most_common()) or "no segmentation"
    if crowds:
        what = "left out as crowds (otherwise say `crowd: masks`)" if skip else "taken as masks"
        parts += f"; {crowds} have iscrowd = 1 and are {what}"
    return f"COCO annotations: {parts}; each annotation is one mask"


def _content(path: Path) -> dict:
    """The JSON of a file with its lists. Raises ValueError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: is no whole JSON file ({text}); export it again") from None
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path}: is no COCO file, it has no list of {key}; export it as COCO JSON")
    content["images"] = [record for record in content["images"] if isinstance(record, dict)]
    return content


class _Lookup:
    """Finds the file that a `file_name` means."""

    def __init__(self, images: Sequence[Listed], folders: Iterable[Path]):
        self.folders = list(folders)
        self.by_path = {nfc(str(image.path)): image.path for image in images}
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        self.by_key: dict[str, list[Path]] = defaultdict(list)
        self.by_stem: dict[str, list[Path]] = defaultdict(list)
        for image in images:
            self.by_name[nfc(image.path.name)].append(image.path)
            self.by_key[image.key].append(image.path)
            self.by_stem[nfc(image.path.stem)].append(image.path)

    def find(self, name: str) -> Path:
        """The listed file; where there is none, the path at which it should be."""
        inner = PurePosixPath(nfc(name.replace("\\", "/")))
        for folder in self.folders:
            if (full := nfc(str(folder / inner))) in self.by_path:
                return self.by_path[full]
        tables = (self.by_name, inner.name), (self.by_key, str(inner.with_suffix("")))
        for table, key in (*tables, (self.by_stem, inner.stem)):
            if len(table[key]) == 1:
                return table[key][0]
        return self.folders[0] / inner


def _id(record: object, key: str) -> int | str | None:
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _size(record: dict) -> tuple[int, int] | None:
    size = record.get("height"), record.get("width")
    return size if all(type(side) is int and side > 0 for side in size) else None


def _problem(kind: str, path: Path, reason: str) -> Problem:
    return Problem(kind, path.stem, path, reason)


def mask_of(segmentation: object, size: tuple[int, int], path: Path, name: str) -> tuple[np.ndarray, bool]:
    """The mask (H, W) of an annotation in an image of ``size``, and whether it reaches beyond the image.

    Raises BadFile: empty, outside the image, broken, or of another size.
    """
    where = f"annotation {name}"
    try:
        mask = decode(segmentation, *size)
    except ValueError as error:
        raise BadFile(path, f"{where}: {error}; draw or export it again", "rle") from None
    reach = _reach(segmentation, size)
    if not mask.any():
        if reach is not None and reach[1]:
            text = f"{where} lies outside its image of {size[0]} x {size[1]} (height x width)"
            raise BadFile(path, f"{text}; is it of another image, or of another size of it?", "outside")
        raise BadFile(path, f"{where} is empty; remove it, or draw the object", "empty")
    return mask, reach is not None and reach[0]


def _reach(segmentation: object, size: tuple[int, int]) -> tuple[bool, bool] | None:
    """Whether polygons reach beyond the image by more than a pixel, and whether they lie outside of it."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    points = np.concatenate([np.asarray(p, float).reshape(-1, 2) for p in segmentation if len(p) > 1] or [[]])
    if not points.size:
        return None
    low, high = points.min(0), points.max(0)
    height, width = size
    beyond = low.min() < -1 or high[0] > width + 1 or high[1] > height + 1
    outside = high.min() < 0 or low[0] >= width or low[1] >= height
    return bool(beyond), bool(outside)
