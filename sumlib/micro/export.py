"""Writing scenes to disk in the layouts that the adapters read. Equal scenes give equal bytes.

A scene is any object with `image` (H, W, 3) uint8 RGB, `salient` (H, W) bool, `entity_map` and `part_map` (H,
W) uint8 (0 none, else the id of an entity, or of a part that is unique in the scene) and `part_owner` {part
id: entity id}.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sumlib.base.files import write_text
from sumlib.base.masks import rle_encode
from sumlib.data.layouts.coco import PACKS
from sumlib.data.layouts.label_maps import PORTRAIT_PARTS
from sumlib.data.layouts.pairs import HQSEG_TREES
from sumlib.data.registry import REGISTRY
from sumlib.micro.truth import LEVELS, TRUTH_FOLDER

PAIRS = {  # salient set -> (image, mask) files of scene i
    "COIFT": ("images/{i:05d}.jpg", "masks/{i:05d}.png"),
    "DIS-VD": ("im/{i:05d}#micro.jpg", "gt/{i:05d}#micro.png"),
    "HRSOD": ("images/{i:05d}.jpg", "masks_max255/{i:05d}.png"),
    "ThinObject5K": ("images_test/{i:05d}.jpg", "masks_test/{i:05d}.png"),
    "VOCEVAL": ("2008_{i:06d}_micro_im.jpg", "2008_{i:06d}_micro_gt.png"),
}


def write_dataset(name: str, root: Path, scenes: Sequence[Any]) -> None:
    """Write `scenes` under `root` where `open_dataset(name, root)` finds them.

    `name` is a registered name, or "internal" or "dev" for the three levels on the same images. Existing
    files of the same names are replaced. Raises ValueError for an unknown name or a scene without a mask at
    the set's level (not for "internal" and "dev", nor for SA-1B's truth, where such scenes are absent at that
    level).
    """
    root, scenes = Path(root), list(scenes)
    if name in ("internal", "dev"):
        _coco(root / name, "{i:05d}.jpg", scenes, {f"{level}.json": level for level in LEVELS})
        return
    if name not in REGISTRY:
        raise ValueError(
            f"no data set is called {name!r}; known are internal, dev, {', '.join(sorted(REGISTRY))}"
        )
    layout = REGISTRY[name]
    level = layout.task.title if layout.task else None
    for i, scene in enumerate(scenes):
        if level and not masks_of(scene, level):
            raise ValueError(f"scene {i} of data set {name} has no {level} mask; leave it out")
    _writer(name, level)(root / layout.folders[0], scenes)


def masks_of(scene: Any, level: str) -> list[np.ndarray]:
    """The scene's non-empty masks (H, W) bool of `level`, by id."""
    if level == "salient":
        return [scene.salient] if scene.salient.any() else []
    ids = scene.entity_map if level == "entity" else scene.part_map
    return [ids == k for k in np.unique(ids) if k]


def _writer(name: str, level: str | None) -> Callable[[Path, list], None]:
    """The function that writes the data set `name` into its folder."""
    if name in PAIRS:
        return lambda folder, scenes: _pairs(folder, scenes, lambda i: PAIRS[name])
    if name.startswith("EntitySeg-"):
        return lambda folder, scenes: _entityseg_val(folder, scenes, int(name[-1]))
    if name.startswith(("Internal-", "dev-")):
        return lambda folder, scenes: _coco(folder, level + "_{i:05d}.jpg", scenes, {f"{level}.json": level})
    return {
        "BIG": _big,
        "HQSeg-44K": _hqseg,
        "EntitySeg": _entityseg_train,
        "SA-1B": _sa1b,
        "Bodypart": _lv_mhp,
        "EasyPortrait": _easyportrait,
        "Fashionpedia": _fashionpedia,
        "Fashionpedia-subpart": _fashionpedia,
        "PACO": _paco,
    }[name]


def _pairs(folder: Path, scenes: list, files: Callable[[int], tuple[str, str]], colour: bool = False) -> None:
    """Image and 0/255 mask of each scene, the mask with three equal channels if `colour`."""
    for i, scene in enumerate(scenes):
        image, mask = (folder / pattern.format(i=i) for pattern in files(i))
        truth = scene.salient.astype(np.uint8) * 255
        write_image(image, scene.image)
        write_image(mask, np.repeat(truth[..., None], 3, 2) if colour else truth)


def _big(folder: Path, scenes: list) -> None:
    """The first third in `val`, the rest in `test`, as the original's 50 + 100; RGB masks."""

    def files(i: int) -> tuple[str, str]:
        place = "val" if 3 * i < len(scenes) else "test"
        return place + "/{i:05d}_im.jpg", place + "/{i:05d}_gt.png"

    _pairs(folder, scenes, files, colour=True)


def _hqseg(folder: Path, scenes: list) -> None:
    """Scenes dealt out to the sub-trees in turn."""
    trees = list(HQSEG_TREES.values())
    for place in (place for tree in trees for place in tree):
        (folder / place).mkdir(parents=True, exist_ok=True)

    def files(i: int) -> tuple[str, str]:
        images, masks = trees[i % len(trees)]
        return images + "/{i:05d}.jpg", masks + "/{i:05d}.png"

    _pairs(folder, scenes, files)


def _coco(folder: Path, pattern: str, scenes: list, files: dict[str, str], images: str = "images") -> None:
    """Images, and for each {JSON name: level} a COCO file of the scenes that have masks of that level."""
    names = [pattern.format(i=i) for i in range(len(scenes))]
    for name, scene in zip(names, scenes):
        write_image(folder / images / name, scene.image)
    for file, level in files.items():
        found = [(i, masks_of(scene, level)) for i, scene in enumerate(scenes)]
        records = [_record(i + 1, names[i], scenes[i]) for i, masks in found if masks]
        _write_json(
            folder / file, records, [_annotation(i + 1, mask) for i, masks in found for mask in masks]
        )


def _entityseg_train(folder: Path, scenes: list) -> None:
    """Scenes dealt out to the packs in turn."""
    names = [f"{PACKS[i % len(PACKS)]}/{i:05d}.jpg" for i in range(len(scenes))]
    _write_json(folder / "entityseg_train.json", *_entities(folder, scenes, names, 1))


def _entityseg_val(folder: Path, scenes: list, number: int) -> None:
    """The scenes become the val images of one pack; those of the other packs in the JSON are kept."""
    names, path = (
        [f"{PACKS[number]}/val_{i:05d}.jpg" for i in range(len(scenes))],
        folder / "entityseg_val.json",
    )
    images, annotations = _entities(folder, scenes, names, 1 + number * 1_000_000)
    if path.is_file():
        old = json.loads(path.read_bytes())
        kept = {r["id"] for r in old["images"] if not r["file_name"].startswith(PACKS[number])}
        images += [r for r in old["images"] if r["id"] in kept]
        annotations += [a for a in old["annotations"] if a["image_id"] in kept]
    # stable: the order inside an image stays
    _write_json(path, sorted(images, key=lambda r: r["id"]), sorted(annotations, key=lambda a: a["image_id"]))


def _entities(folder: Path, scenes: list, names: list[str], first_id: int) -> tuple[list[dict], list[dict]]:
    for name, scene in zip(names, scenes):
        pack, file = name.split("/")
        write_image(folder / pack / "images" / file, scene.image)
    records = [_record(first_id + i, names[i], scene) for i, scene in enumerate(scenes)]
    return records, [
        _annotation(first_id + i, m) for i, scene in enumerate(scenes) for m in masks_of(scene, "entity")
    ]


def _sa1b(folder: Path, scenes: list) -> None:
    """Images alone in `SA-1B/sa_000000`; every true mask beside it in `SA-1B-truth`, read by
    `truth.open_truth`.
    """
    files = {f"../{TRUTH_FOLDER}/{level}.json": level for level in LEVELS}
    folder.mkdir(parents=True, exist_ok=True)
    _coco(folder, "sa_{i}.jpg", scenes, files, images="sa_000000")


def _lv_mhp(folder: Path, scenes: list) -> None:
    """A file for each entity that has parts; its parts are the labels 1, 2, ... in the order of their ids."""
    (folder / "list").mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes, 1):
        owners = sorted({int(scene.part_owner[k]) for k in np.unique(scene.part_map) if k})
        write_image(folder / f"val/images/{i}.jpg", scene.image)
        for stale in (folder / "val/parsing_annos").glob(f"{i}_*.png"):
            stale.unlink()
        for person, owner in enumerate(owners, 1):
            labels = np.zeros(scene.part_map.shape, np.uint8)
            parts = [k for k in np.unique(scene.part_map) if k and scene.part_owner[int(k)] == owner]
            for label, part in enumerate(parts, 1):
                labels[scene.part_map == part] = label
            path = folder / f"val/parsing_annos/{i}_{len(owners):02d}_{person:02d}.png"
            write_image(path, np.repeat(labels[..., None], 3, 2))
    (folder / "list/val.txt").write_text("".join(f"{i}\n" for i in range(1, len(scenes) + 1)))


def _easyportrait(folder: Path, scenes: list) -> None:
    """A scene's first seven parts, by id, become the labels 2-8; the rest of its entities is label 1,
    "person".

    The layout has no room for more parts: further ones stay label 1 and are no masks.
    """
    for i, scene in enumerate(scenes):
        labels = (scene.entity_map > 0).astype(np.uint8)
        for label, mask in zip(PORTRAIT_PARTS, masks_of(scene, "part")):
            labels[mask] = label
        write_image(folder / f"images/val/{i:05d}.jpg", scene.image)
        write_image(folder / f"annotations/val/{i:05d}.png", labels)


def _fashionpedia(folder: Path, scenes: list) -> None:
    """All parts: the larger half of a scene's as categories 0-26, the smaller as 27-45 (all sizes are
    relative).
    """
    records, annotations = [], []
    for i, scene in enumerate(scenes):
        name, masks = f"{i:05d}.jpg", sorted(masks_of(scene, "part"), key=lambda m: -int(m.sum()))
        write_image(folder / "test" / name, scene.image)
        records.append(_record(i + 1, name, scene))
        large = (len(masks) + 1) // 2
        for k, mask in enumerate(masks):
            category = k % 27 if k < large else 27 + (k - large) % 19
            annotations.append(_annotation(i + 1, mask) | {"category_id": category, "attribute_ids": []})
    _write_json(folder / "instances_attributes_val2020.json", records, annotations)


def _paco(folder: Path, scenes: list) -> None:
    """Entities as objects (`obj_ann_id` their own id) and parts with their entity's id as `obj_ann_id`."""
    records, annotations = [], []
    for i, scene in enumerate(scenes):
        name = f"val2017/{i:012d}.jpg"
        write_image(folder / name, scene.image)
        records.append(_record(i + 1, name, scene))
        objects = {}
        for entity in (int(k) for k in np.unique(scene.entity_map) if k):
            objects[entity] = len(annotations) + 1
            annotations.append(
                _annotation(i + 1, scene.entity_map == entity) | {"obj_ann_id": objects[entity]}
            )
        for part in (int(k) for k in np.unique(scene.part_map) if k):
            owner = objects[scene.part_owner[part]]
            annotations.append(_annotation(i + 1, scene.part_map == part) | {"obj_ann_id": owner})
    _write_json(folder / "paco_lvis_v1_val.json", records, annotations)


def _record(number: int, name: str, scene: Any) -> dict:
    height, width = scene.image.shape[:2]
    return {"id": number, "file_name": name, "height": height, "width": width}


def _annotation(image: int, mask: np.ndarray) -> dict:
    """COCO annotation with compressed RLE; `_write_json` numbers it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [
        columns[0],
        rows[0],
        columns[-1] - columns[0] + 1,
        rows[-1] - rows[0] + 1,
    ]  # (4,) x y width height pixels
    return {
        "image_id": image,
        "category_id": 1,
        "segmentation": rle_encode(mask),
        "area": int(mask.sum()),
        "bbox": [int(v) for v in box],
        "iscrowd": 0,
    }


def _write_json(path: Path, images: list[dict], annotations: list[dict]) -> None:
    """COCO file with annotations numbered from 1 in their order; replaced as a whole, never half-written."""
    numbered = [annotation | {"id": k} for k, annotation in enumerate(annotations, 1)]
    ids = sorted({a["category_id"] for a in annotations})
    categories = [{"id": k, "name": str(k)} for k in ids]
    content = {"images": images, "annotations": numbered, "categories": categories}
    write_text(path.resolve(), json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


def write_image(path: Path, pixels: np.ndarray) -> None:
    """JPEG (quality 95, no chroma subsampling) for .jpg, PNG otherwise.

    `pixels` (H, W) or (H, W, 3) uint8, or 16 bit without colour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(pixels).save(path, **options)
