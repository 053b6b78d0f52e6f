"""Committed micro scenes in the layout of a user's folder: masks of every form that a project may have."""

import functools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from sumlib.base.masks import rle_decode
from sumlib.base.paths import SAMPLE

FORMS = ("binary", "binary-255", "labels", "palette", "several", "folders", "rle", "crowd", "runs")
"""How `write_project` writes masks; the last three are COCO JSON files."""
CHECKPOINT = SAMPLE / "foundation" / "sam.safetensors"


@functools.cache
def micro_masks(level: str, count: int = 20) -> dict[str, np.ndarray]:
    """Masks (M, 64, 64) of the first scenes of sample/internal at a level, by the image's file name."""
    content = json.loads((SAMPLE / "internal" / f"{level}.json").read_text())
    names = {record["id"]: record["file_name"] for record in content["images"]}
    names = {number: name for number, name in names.items() if name in sorted(names.values())[:count]}
    found: dict[str, list] = {}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in names:
            continue
        found.setdefault(names[annotation["image_id"]], []).append(rle_decode(annotation["segmentation"]))
    return {name: np.stack(masks) for name, masks in sorted(found.items())}


def write_project(
    folder: Path,
    form: str = "binary",
    images: int = 10,
    task: str | None = None,
    unlabeled: int = 6,
    checkpoint: bool = True,
    first: int = 0,
) -> Path:
    """A project of ``images`` micro scenes from the ``first`` on, with masks of one of the `FORMS`.

    Binary forms hold the salient object, the others all entities. With ``task`` or a ``checkpoint`` (the
    micro SAM) it has a `project.yaml`, else none. Returns the folder.
    """
    level = "salient" if form.startswith("binary") else "entity"
    scenes = list(micro_masks(level, first + images).items())[first : first + images]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, _ in scenes:
        (folder / "images" / name).write_bytes((SAMPLE / "internal" / "images" / name).read_bytes())
    write_masks(folder, form, scenes)
    others = sorted((SAMPLE / "SA-1B" / "sa_000000").glob("*.jpg"))[:unlabeled]
    for path in others:
        (folder / "unlabeled").mkdir(exist_ok=True)
        (folder / "unlabeled" / path.name).write_bytes(path.read_bytes())
    lines = [f"task: {task}"] if task else []
    lines += [f"checkpoint: {CHECKPOINT}"] if checkpoint else []
    if lines:
        (folder / "project.yaml").write_text("\n".join(lines) + "\n")
    return folder


def write_masks(folder: Path, form: str, scenes: list[tuple[str, np.ndarray]]) -> None:
    """The masks of (file name, masks) scenes, in ``folder/masks`` or ``folder/annotations.json``."""
    if form in ("rle", "crowd", "runs"):
        (folder / "annotations.json").write_text(json.dumps(coco_json(form, scenes)))
        return
    place = folder / "masks"
    place.mkdir(exist_ok=True)
    for name, masks in scenes:
        stem = Path(name).stem
        if form == "folders":
            (place / stem).mkdir()
        for number, mask in enumerate(masks):
            if form == "several":
                save_grey(place / f"{stem}_{number}.png", mask * 255)
            elif form == "folders":
                save_grey(place / stem / f"{number:02}.png", mask * 255)
        if form in ("binary", "binary-255"):
            save_grey(place / f"{stem}.png", masks[0] * (255 if form == "binary-255" else 1))
        elif form in ("labels", "palette"):
            labels = (masks * np.arange(1, len(masks) + 1)[:, None, None]).max(0)
            save_grey(place / f"{stem}.png", labels, palette=form == "palette")


def save_grey(path: Path, values: np.ndarray, palette: bool = False) -> None:
    """Write values (H, W) up to 255 as 8-bit PNG, grey or with colours."""
    picture = Image.fromarray(np.asarray(values, np.uint8))
    if palette:
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        colours = np.random.default_rng(0).integers(1, 255, (256, 3))
        colours[0] = 0
        picture.putpalette(colours.astype(np.uint8).tobytes())
    picture.save(path)


def coco_json(form: str, scenes: list[tuple[str, np.ndarray]]) -> dict:
    """COCO annotations as compressed run lengths ("rle", "crowd" with iscrowd = 1) or as lists ("runs")."""
    from sumlib.base.masks import rle_encode

    content: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number, (name, masks) in enumerate(scenes, 1):
        height, width = masks.shape[1:]
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for mask in masks:
            code = runs(mask) if form == "runs" else rle_encode(mask)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": code,
                    "area": int(mask.sum()),
                    "iscrowd": int(form == "crowd"),
                }
            )
    return content


def runs(mask: np.ndarray) -> dict:
    """Uncompressed run lengths of a mask (H, W), column by column, from a run of zeros on."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.r_[0, flat.astype(np.int8), 0]))
    lengths = np.diff(np.r_[0, edges])
    rest = flat.size - int(lengths.sum())
    return {"size": list(mask.shape), "counts": [*lengths.tolist(), *([rest] if rest else [])]}
