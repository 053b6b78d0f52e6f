"""Adapters for the paper's eight additional test sets (Table 19), each in the layout it is distributed in.

They have no task of their own: every mask is of the task "unspecified". What the paper does not say of a set
(split, what counts as a mask) is inferred, and said so at its adapter.
"""

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from sumlib.data.dataset import Dataset, Entry
from sumlib.data.layouts.coco import coco, load_coco
from sumlib.data.layouts.label_maps import existing, load_labels, positive
from sumlib.data.registry import open_dataset, read_registry

CITYSCAPES_IGNORED = frozenset([*range(7), 9, 10, 14, 15, 16, 18, 29, 30])
"""Class ids of Cityscapes that its own evaluation leaves out; GTAV uses the same ids."""


def cityscapes(root: Path, split: str = "val") -> list[Entry]:
    """`leftImg8bit/<split>/<city>/<id>_leftImg8bit.png` and
    `gtFine/<split>/<city>/<id>_gtFine_instanceIds.png`, 16 bit.

    A mask is an instance (values from 1000 on: class = value // 1000) or, below 1000, a class without
    instances; not of `CITYSCAPES_IGNORED`.
    """
    images = sorted(existing(root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    stems = [(path, path.name.removesuffix("_leftImg8bit.png")) for path in images]
    return [
        _labelled(
            stem,
            path,
            root / "gtFine" / split / path.parent.name / f"{stem}_gtFine_instanceIds.png",
            _cityscapes_counts,
        )
        for path, stem in stems
    ]


def _cityscapes_counts(value: int) -> bool:
    return (value // 1000 if value >= 1000 else value) not in CITYSCAPES_IGNORED


def egohos(root: Path, splits: Collection[str] = ("val", "test_indomain", "test_outdomain")) -> list[Entry]:
    """`<split>/image/<id>.jpg` and `<split>/label/<id>.png`, ids 0-8 (hands and the objects they hold); a
    mask a label above 0.

    The paper's split is not documented: all but the training images are taken, of the splits that are there.
    """
    found = [split for split in splits if (root / split / "image").is_dir()]
    if not found:
        raise FileNotFoundError(
            f"{root / next(iter(splits)) / 'image'}: folder is missing; unpack the data set so that it exists"
        )
    return [
        _labelled(f"{split}-{path.stem}", path, root / split / "label" / f"{path.stem}.png", positive)
        for split in found
        for path in sorted((root / split / "image").glob("*.jpg"))
    ]


def dram(root: Path) -> list[Entry]:
    """`test/<movement>/<artist>/<name>.jpg` and the label map beside it, `<name>.png`: VOC's class ids, 255
    is ignored; a mask a class.
    """
    folder = existing(root / "test")
    paths = sorted(folder.rglob("*.jpg"))
    return [
        _labelled(
            "-".join(path.relative_to(folder).with_suffix("").parts),
            path,
            path.with_suffix(".png"),
            _voc_counts,
        )
        for path in paths
    ]


def _voc_counts(value: int) -> bool:
    return 0 < value < 255


def ishape(root: Path, split: str = "val") -> list[Entry]:
    """`<class>/<split>/image/<id>.jpg` and `<class>/<split>/instance_map/<id>.png`, 16 bit; a mask an
    instance above 0.
    """
    paths = sorted(existing(root).glob(f"*/{split}/image/*.jpg"))
    return [
        _labelled(
            f"{path.parts[-4]}-{path.stem}",
            path,
            path.parents[1] / "instance_map" / f"{path.stem}.png",
            positive,
        )
        for path in paths
    ]


def gtav(root: Path, first: int = 2500) -> list[Entry]:
    """`images/NNNNN.png` and `labels/NNNNN.png`, paletted: Cityscapes' class ids. Part 1 are the ``first``
    images.

    There are no instances: a mask is a class (inferred; connected components are the other reading).
    """
    paths = sorted(existing(root / "images").glob("*.png"))[:first]
    return [_labelled(path.stem, path, root / "labels" / path.name, _cityscapes_counts) for path in paths]


def ndd20(root: Path) -> list[Entry]:
    """`ABOVE/*.jpg` and `BELOW/*.jpg` with `ABOVE_LABELS.json` and `BELOW_LABELS.json`: VIA's outlines of
    dolphins, closed and filled.

    The same file name occurs in both folders, so a sample is called by its folder and name.
    """
    entries = []
    for folder in ("ABOVE", "BELOW"):
        path = root / f"{folder}_LABELS.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: file is missing; put the data set's annotations there")
        for file, polygons in sorted(_via(path), key=lambda record: record[0]):
            image = root / folder / file
            outlines = [(str(k), [polygon]) for k, polygon in enumerate(polygons)]
            entries.append(Entry(f"{folder}-{image.stem}", image, partial(load_coco, image, path, outlines)))
    return entries


def _via(path: Path) -> list[tuple[str, list[list[float]]]]:
    """File name and outlines of each image in a file of the VGG Image Annotator.

    Raises ValueError naming the entry.
    """
    try:
        records, images = json.loads(path.read_bytes()), []
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a whole VIA file ({type(error).__name__}: {error}); download it again"
        ) from None
    if not isinstance(records, dict):
        raise ValueError(f"{path}: not a whole VIA file (no object at its top); download it again")
    for key, record in records.items():
        try:
            regions = record["regions"]
            listed = regions.values() if isinstance(regions, dict) else regions  # VIA 1 and 2
            polygons = [_polygon(region["shape_attributes"]) for region in listed]
            if not isinstance(record["filename"], str) or not record["filename"]:
                raise TypeError("filename is no text")
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            reason = f"not a whole VIA file (entry {key!r}: {type(error).__name__}: {error})"
            raise ValueError(f"{path}: {reason}; mend the entry or download the file again") from None
        images.append((record["filename"], polygons))
    return images


def _polygon(shape: dict) -> list[float]:
    """VIA's polyline or polygon as COCO writes it: x, y, x, y ..."""
    return [float(v) for xy in zip(shape["all_points_x"], shape["all_points_y"], strict=True) for v in xy]


def trashcan(root: Path, split: str = "train") -> list[Entry]:
    """`dataset/instance_version/instances_<split>_trashcan.json` and `<split>/*.jpg`; empty segmentations
    occur and are reported.

    The polygons of the distribution lie a pixel off; they are taken as they are. SAM's paper uses the
    training images.
    """
    folder = root / "dataset" / "instance_version"
    return coco(folder, f"instances_{split}_trashcan.json", split)


def ibd(root: Path) -> list[Entry]:
    """IBD's layout could not be confirmed; this reads COCO JSON, `annotations.json` beside `images/`.

    Without one it reads `images/*` with `masks/<same name>.png`, label maps with a mask for each value above
    0 (a plain 0/255 mask is one).
    """
    if any((root / folder / "annotations.json").is_file() for folder in (".", "annotations")):
        return coco(root, "annotations.json")
    images = sorted(
        path
        for path in existing(root / "images").iterdir()
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".tif")
    )
    return [_labelled(path.stem, path, root / "masks" / f"{path.stem}.png", positive) for path in images]


def _labelled(name: str, image: Path, labels: Path, counts: Callable[[int], bool]) -> Entry:
    return Entry(name, image, partial(load_labels, image, (labels,), counts))


ADDITIONAL = read_registry(roles=["additional"])
"""The sets of Table 19 in its order."""


def open_additional(name: str, root: Path) -> Dataset:
    """The additional test set ``name`` under ``root``, as `sumlib.data.open_dataset` opens it."""
    return open_dataset(name, root, ADDITIONAL)
