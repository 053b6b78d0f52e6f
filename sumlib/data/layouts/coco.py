"""Adapters for COCO JSON files: the generic one, EntitySeg, Fashionpedia and PACO."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from sumlib.base.masks import rle_decode
from sumlib.data.dataset import Entry, Loaded
from sumlib.data.images import BadSampleError, is_turned, read_image

PACKS = ("entity_01_11580", "entity_02_11598", "entity_03_10049")
SUBPARTS = range(27, 46)
"""Fashionpedia's categories of garment parts and decorations."""
EMPTY = "mask is empty and left out; remove the annotation or restore its segmentation"


def coco(
    root: Path, annotations: str, images: str = "images", keep: Callable[[dict], bool] | None = None
) -> list[Entry]:
    """COCO JSON `annotations` beside a folder `images`; one mask an annotation, in the file's order.

    Segmentations may be polygons, compressed or uncompressed RLE, or empty; empty ones and those outside the
    image's size are left out and reported. Crowd annotations are skipped. With `keep`, only annotations for which
    it is true count, and images without any are not members; without it they are members, and bad.
    Raises FileNotFoundError or ValueError if the JSON is missing or broken.
    """
    path = find_json(root, annotations)
    content, by_image = read_coco(path)
    if keep is not None:
        by_image = {key: kept for key, found in by_image.items() if (kept := [a for a in found if keep(a)])}
    entries = []
    for record in content["images"]:
        found = [
            (str(a["id"]), a.get("segmentation"))
            for a in by_image.get(record["id"], [])
            if not a.get("iscrowd")
        ]
        if found or keep is None:
            image = root / images / record["file_name"]
            entries.append(
                Entry(image.stem, image, partial(load_coco, image, path, found, _record_size(record)))
            )
    return entries


def entityseg(root: Path, split: str, pack: str | None = None) -> list[Entry]:
    """EntitySeg `split` ("train" or "val") from `entityseg_<split>.json`, or one `pack` of it.

    `file_name` begins with the pack; the image is looked for under `<pack>/images`, `<pack>/images_lr` and
    `<pack>` by its inner path, then by its base name. The JSON of the reduced images (`..._lr.json`) is used where it
    is the only one. The paper's three validation sets are taken to be the packs of the official one (inferred:
    454 + 459 + 401 = 1,314).
    """
    name = f"entityseg_{split}.json"
    path = find_json(root, name, f"entityseg_{split}_lr.json")
    content, by_image = read_coco(path)
    entries = []
    for record in content["images"]:
        own, _, inner = record["file_name"].partition("/")
        if pack is None or own == pack:
            image = _entityseg_image(root / own, inner, path.stem.endswith("_lr"))
            found = [(str(a["id"]), a.get("segmentation")) for a in by_image.get(record["id"], [])]
            load = partial(load_coco, image, path, found, _record_size(record))
            entries.append(Entry(f"{own}-{image.stem}", image, load))
    if not entries:
        raise ValueError(
            f"{path}: no image of pack {pack}; its `file_name` entries should begin with the pack's name"
        )
    return entries


def fashionpedia(root: Path, categories: range = range(46)) -> list[Entry]:
    """Fashionpedia val: `instances_attributes_val2020.json` and images in `test/`; `categories` 27-45 are "subpart".

    The filter that leaves 1,148 of the 1,158 images in the paper is not documented; none is applied.
    """
    wanted = partial(_in_categories, categories)
    return coco(root, "instances_attributes_val2020.json", "test", keep=wanted)


def paco(root: Path) -> list[Entry]:
    """PACO-LVIS val: `paco_lvis_v1_val.json`; parts are the annotations with `id != obj_ann_id`.

    `file_name` includes `train2017/` or `val2017/`, which lie under `root`. Images without parts are not members.
    """
    return coco(root, "paco_lvis_v1_val.json", ".", keep=_is_part)


def load_coco(
    image_path: Path, json_path: Path, found: list[tuple[str, object]], size: list[int] | None = None
) -> Loaded:
    """Image (H, W, 3) uint8, masks (M, H, W) bool of the (annotation id, segmentation) pairs, and those left out.

    `size` is [height, width] by the JSON, None if it does not say. Raises BadSampleError if the image is bad, it or
    a mask has another size, or no mask is left.
    """
    image = read_image(image_path)
    height, width = image.shape[:2]
    if size not in (None, [height, width]):
        sizes = f"it is {height} x {width}, by the annotations {size[0]} x {size[1]} (height x width)"
        raise _misfit(image_path, json_path, sizes)
    masks, left_out = [], {}
    for annotation, segmentation in found:
        try:
            mask = decode(segmentation, height, width)
        except ValueError as error:
            raise _misfit(image_path, json_path, f"annotation {annotation}: {error}") from None
        if mask.any():
            masks.append(mask)
        else:
            left_out[annotation] = BadSampleError(json_path, f"annotation {annotation}: {EMPTY}")
    if not masks:
        reason = f"no mask with foreground for the image {image_path}; remove it or restore its annotations"
        raise BadSampleError(json_path, reason)
    return image, np.stack(masks), left_out


def decode(segmentation: object, height: int, width: int) -> np.ndarray:
    """COCO polygons, compressed or uncompressed RLE, or nothing -> mask (H, W) bool.

    Polygons of fewer than three corners are ignored. Raises ValueError if an RLE has another size or is broken.
    """
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(f"its mask is {segmentation.get('size')}, the image {[height, width]}")
        if not segmentation.get("counts"):
            return np.zeros((height, width), bool)
        if run_total(segmentation["counts"]) != height * width:
            raise ValueError("its run lengths do not add up to the image's pixels")
        return rle_decode(segmentation)
    polygons = [p for p in segmentation or [] if len(p) >= 6]
    if not polygons:
        return np.zeros((height, width), bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def run_total(counts: str | bytes | list[int]) -> int:
    """Number of pixels that the run lengths of an RLE cover, -1 if they are broken.

    pycocotools fills what a truncated RLE leaves open with uninitialised memory, so this is checked first.

    >>> run_total("0120"), run_total([0, 1, 2, 1]), run_total("01")
    (4, 4, 1)
    """
    if isinstance(counts, list):
        return sum(counts) if min(counts) >= 0 else -1
    codes = (
        np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    )
    ends = np.flatnonzero(
        codes & 32 == 0
    )  # six bits a character: five of the number, one that says "more follows"
    lengths = np.diff(ends, prepend=-1)
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32 or lengths.max() > 6:
        return -1
    place = np.arange(len(codes)) - np.repeat(ends - lengths + 1, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * place, ends - lengths + 1)
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)  # sign of the number
    runs[1::2], runs[2::2] = (
        runs[1::2].cumsum(),
        runs[2::2].cumsum(),
    )  # from the fourth on, differences to two before
    return int(runs.sum()) if runs.min() >= 0 else -1


def read_coco(path: Path) -> tuple[dict, dict[int, list[dict]]]:
    """The JSON's content and its annotations by image id. Raises ValueError if it is no COCO file."""
    try:
        content = json.loads(path.read_bytes())
        by_image: dict[int, list[dict]] = {record["id"]: [] for record in content["images"]}
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a whole COCO file ({type(error).__name__}: {error}); download it again"
        ) from None
    return content, by_image


def find_json(root: Path, *names: str) -> Path:
    """The first of `names` that lies in `root` or `root/annotations`. Raises FileNotFoundError."""
    places = [root / folder / name for name in names for folder in (".", "annotations")]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{places[0]}: file is missing; put the data set's annotations there")


def _entityseg_image(pack: Path, inner: str, reduced: bool) -> Path:
    """Where the image of a pack lies; the first guess if nowhere (reading it then says that it is missing)."""
    folders = ("images_lr", "images", ".") if reduced else ("images", "images_lr", ".")
    guesses = [pack / folder / name for name in (inner, Path(inner).name) for folder in folders]
    return next((guess for guess in guesses if guess.is_file()), guesses[0])


def _record_size(record: dict) -> list[int] | None:
    return [record["height"], record["width"]] if "height" in record and "width" in record else None


def _misfit(image_path: Path, json_path: Path, reason: str) -> BadSampleError:
    turned = is_turned(image_path)
    remedy = (
        "the image carries an EXIF orientation: turn the masks, or remove the tag"
        if turned
        else "restore the pair"
    )
    return BadSampleError(json_path, f"does not fit the image {image_path}: {reason}; {remedy}")


def _in_categories(categories: range, annotation: dict) -> bool:
    return annotation["category_id"] in categories


def _is_part(annotation: dict) -> bool:
    return annotation["id"] != annotation["obj_ann_id"]
