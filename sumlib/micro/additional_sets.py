"""The micro versions of the eight additional test sets (Table 19): how each looks, and writing it in its real
layout.

python -m sumlib.micro.additional_sets sample
"""

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sumlib.micro.export import masks_of, write_image
from sumlib.micro.sets import PLAIN
from sumlib.micro.world import Scene, Style, make_scene

SCENES = 24
"""Images of each set."""


@dataclass(frozen=True)
class AdditionalSet:
    """How a set looks and what its masks are."""

    style: Style
    shift: str
    """In what it differs from the training sets, in words."""


SETS = {
    "Cityscapes": AdditionalSet(
        replace(PLAIN, scale=(10.0, 13.0), distractors=(4, 6), lighting=0.3, smallest=16),
        "driving: many small objects, strong light",
    ),
    "EgoHOS": AdditionalSet(
        replace(PLAIN, scale=(20.0, 25.0), attached=1.0, distractors=(0, 1), blur=0.4),
        "egocentric: large objects that touch, seen close up",
    ),
    "DRAM": AdditionalSet(
        replace(PLAIN, texture=0.2, noise=0.06, contrast=(0.6, 0.8)),
        "paintings: strong texture everywhere, dull colours",
    ),
    "iShape": AdditionalSet(
        replace(
            PLAIN,
            kinds=("wheel", "comb", "panel", "ladder", "plant"),
            detail=1.6,
            thin=0.75,
            scale=(19.0, 23.0),
        ),
        "irregular shapes: lattices and spokes, many and thin",
    ),
    "GTAV": AdditionalSet(
        replace(PLAIN, texture=0.0, noise=0.0, lighting=0.0, contrast=(1.0, 1.0), distractors=(2, 4)),
        "synthetic: flat surfaces; a mask is a class, often of several objects",
    ),
    "NDD20": AdditionalSet(
        replace(PLAIN, kinds=("fish",), contrast=(0.35, 0.5), blur=0.9, distractors=(0, 0), attached=0.2),
        "dolphins under and above water: one kind, blurred, low contrast",
    ),
    "TrashCan": AdditionalSet(
        replace(PLAIN, scale=(9.0, 13.0), contrast=(0.45, 0.6), blur=0.6, noise=0.05, lighting=0.5),
        "debris under water: small, dim, uneven light",
    ),
    "IBD": AdditionalSet(
        replace(
            PLAIN, kinds=("panel", "ladder"), scale=(8.0, 11.0), distractors=(5, 7), attached=1.0, smallest=20
        ),
        "drones: many small objects from above",
    ),
}


def scenes(name: str, count: int = SCENES) -> Iterator[Scene]:
    """The first ``count`` scenes of set ``name``, the same ones every time; each has an entity."""
    rng = np.random.default_rng(zlib.crc32(f"micro additional {name}".encode()))
    for _ in range(count):
        while not masks_of(scene := make_scene(rng, SETS[name].style), "entity"):
            pass
        yield scene


def classes(scene: Scene) -> np.ndarray:
    """(H, W) uint8: the scene's entities as three classes, 1 to 3, so that a class may have several objects;
    0 is background.
    """
    return np.where(scene.entity_map > 0, (scene.entity_map - 1) % 3 + 1, 0).astype(np.uint8)


def write_additional(name: str, root: Path, found: Sequence[Scene]) -> None:
    """Write scenes under ``root/additional/<name>`` in the layout that `sumlib.data.layouts.additional`
    reads. Equal scenes give equal bytes.
    """
    WRITERS[name](Path(root) / "additional" / name, list(found))


def _cityscapes(folder: Path, found: list[Scene]) -> None:
    for i, scene in enumerate(found):
        stem, values = (
            f"micro_{i:06d}_000019",
            np.where(scene.entity_map > 0, 26000 + scene.entity_map.astype(np.int32), 4),
        )  # 26 car, 4 static
        write_image(folder / f"leftImg8bit/val/micro/{stem}_leftImg8bit.png", scene.image)
        write_image(folder / f"gtFine/val/micro/{stem}_gtFine_instanceIds.png", values.astype(np.uint16))


def _egohos(folder: Path, found: list[Scene]) -> None:
    for i, scene in enumerate(found):
        split = "test_indomain" if 2 * i < len(found) else "test_outdomain"
        write_image(folder / split / f"image/{i:05d}.jpg", scene.image)
        write_image(folder / split / f"label/{i:05d}.png", np.minimum(scene.entity_map, 8))


def _dram(folder: Path, found: list[Scene]) -> None:
    for i, scene in enumerate(found):
        place = folder / f"test/movement-{i % 2}/artist/{i:03d}"
        write_image(place.with_suffix(".jpg"), scene.image)
        write_image(place.with_suffix(".png"), classes(scene))


def _ishape(folder: Path, found: list[Scene]) -> None:
    for i, scene in enumerate(found):
        place = folder / ("fence" if i % 2 else "wire") / "val"
        write_image(place / f"image/{i:05d}.jpg", scene.image)
        write_image(place / f"instance_map/{i:05d}.png", scene.entity_map.astype(np.uint16))


def _gtav(folder: Path, found: list[Scene]) -> None:
    for i, scene in enumerate(found, 1):
        write_image(folder / f"images/{i:05d}.png", scene.image)
        path = folder / f"labels/{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(
            np.array([0, 24, 26, 33], np.uint8)[classes(scene)], "P"
        )  # person, car, bicycle
        picture.putpalette([v for k in range(256) for v in (k, (37 * k) % 256, (91 * k) % 256)])
        picture.save(path)


def _ndd20(folder: Path, found: list[Scene]) -> None:
    for k, place in enumerate(("ABOVE", "BELOW")):
        records = {}
        for i, scene in enumerate(found[k::2]):
            name = f"{i}.jpg"
            write_image(folder / place / name, scene.image)
            outlines = [outline for mask in masks_of(scene, "entity") for outline in _outlines(mask)[:1]]
            shapes = [
                {"name": "polyline", "all_points_x": o[0::2], "all_points_y": o[1::2]} for o in outlines
            ]
            records[f"{name}-1"] = {
                "filename": name,
                "size": -1,
                "regions": [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes],
                "file_attributes": {},
            }
        _json(folder / f"{place}_LABELS.json", records)


def _trashcan(folder: Path, found: list[Scene]) -> None:
    place, images, annotations = folder / "dataset/instance_version", [], []
    for i, scene in enumerate(found):
        name = f"vid_{i:06d}_frame0000001.jpg"
        write_image(place / "train" / name, scene.image)
        images.append(
            {"id": i + 1, "file_name": name, "height": scene.image.shape[0], "width": scene.image.shape[1]}
        )
        for mask in masks_of(scene, "entity"):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "segmentation": _outlines(mask),
                    "area": int(mask.sum()),
                }
            )
    _json(
        place / "instances_train_trashcan.json",
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "trash"}]},
    )


def _ibd(folder: Path, found: list[Scene]) -> None:
    for i, scene in enumerate(found):
        write_image(folder / f"images/{i:05d}.png", scene.image)
        write_image(folder / f"masks/{i:05d}.png", scene.entity_map)


WRITERS: dict[str, Callable[[Path, list[Scene]], None]] = {
    "Cityscapes": _cityscapes,
    "EgoHOS": _egohos,
    "DRAM": _dram,
    "iShape": _ishape,
    "GTAV": _gtav,
    "NDD20": _ndd20,
    "TrashCan": _trashcan,
    "IBD": _ibd,
}


def _outlines(mask: np.ndarray) -> list[list[int]]:
    """Outer outlines [x, y, x, y ...] of a mask (H, W) bool, the longest first.

    They have at least three corners; holes and slivers are lost, as in such labels.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    usable = [contour.reshape(-1).tolist() for contour in contours if len(contour) >= 3]
    return sorted(usable, key=len, reverse=True)


def _json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path)
    for each in SETS:
        write_additional(each, parser.parse_args().root, list(scenes(each)))
