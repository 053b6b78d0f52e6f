"""Adapters for COCO JSON files: the generic one, EntitySeg, Fashionpedia and PACO."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sumlib.base.masks import polygon_mask, rle_decode
from sumlib.data.dataset import Entry, Loaded
from sumlib.data.images import BadSampleError, is_turned, read_image

PACKS = ("entity_01_11580", "entity_02_11598", "entity_03_10049")
EMPTY = "mask is empty and left out; remove the annotation or restore its segmentation"


def coco(
    root: Path,
    annotations: str,
    images: str = "images",
    keep: Callable[[dict], bool] | None = None,
    keys: tuple[str, ...] = (),
) -> list[Entry]:
    """COCO JSON `annotations` beside a folder `images`; one mask an annotation, in the file's order.

    Segmentations may be polygons, compressed or uncompressed RLE, or empty; empty ones and those outside the
    image's size are left out and reported. Crowd annotations are skipped. With `keep`, only annotations for
    which it is true count, and images without any are not members; without it they are members, and bad.
    `keys` are the fields that `keep` needs, beside the ids. Raises FileNotFoundError or ValueError if the
    JSON is missing or broken.
    """
    path = find_json(root, annotations)
    content, by_image = read_coco(path, *keys)
    entries = []
    for record in content["images"]:
        segmentations = [
            (str(a["id"]), a.get("segmentation"))
            for a in by_image[record["id"]]
            if (keep is None or keep(a)) and not a.get("iscrowd")
        ]
        if segmentations or keep is None:
            image = root / images / record["file_name"]
            load = partial(load_coco, image, path, segmentations, _record_size(record))
            entries.append(Entry(image.stem, image, load))
    return entries


def entityseg(root: Path, split: str, pack: str | None = None) -> list[Entry]:
    """EntitySeg `split` ("train" or "val") from `entityseg_<split>.json`, or one `pack` of it.

    `file_name` begins with the pack; the image is looked for under `<pack>/images`, `<pack>/images_lr` and
    `<pack>` by its inner path, then by its base name. The JSON of the reduced images (`..._lr.json`) is used
    where it is the only one. The paper's three validation sets are taken to be the packs of the official one
    (inferred: 454 + 459 + 401 = 1,314).
    """
    name = f"entityseg_{split}.json"
    path = find_json(root, name, f"entityseg_{split}_lr.json")
    content, by_image = read_coco(path)
    entries = []
    for record in content["images"]:
        own, _, inner = record["file_name"].partition("/")
        if pack is None or own == pack:
            image = _entityseg_image(root / own, inner, path.stem.endswith("_lr"))
            segmentations = [(str(a["id"]), a.get("segmentation")) for a in by_image[record["id"]]]
            load = partial(load_coco, image, path, segmentations, _record_size(record))
            entries.append(Entry(f"{own}-{image.stem}", image, load))
    if not entries:
        raise ValueError(
            f"{path}: no image of pack {pack}; its `file_name` entries should begin with the pack's name"
        )
    return entries


def fashionpedia(root: Path, categories: range = range(46)) -> list[Entry]:
    """Fashionpedia val: `instances_attributes_val2020.json` and images in `test/`; `categories` 27-45 are
    "subpart".

    The filter that leaves 1,148 of the 1,158 images in the paper is not documented; none is applied.
    """
    wanted = partial(_in_categories, categories)
    return coco(root, "instances_attributes_val2020.json", "test", wanted, ("category_id",))


def paco(root: Path) -> list[Entry]:
    """PACO-LVIS val: `paco_lvis_v1_val.json`; parts are the annotations with `id != obj_ann_id`.

    `file_name` includes `train2017/` or `val2017/`, which lie under `root`. Images without parts are not
    members.
    """
    return coco(root, "paco_lvis_v1_val.json", ".", _is_part, ("obj_ann_id",))


def load_coco(
    image_path: Path, json_path: Path, segmentations: list[tuple[str, object]], size: list[int] | None = None
) -> Loaded:
    """Image (H, W, 3) uint8, masks (M, H, W) bool of the (annotation id, segmentation) pairs, and those left
    out.

    `size` is [height, width] by the JSON, None if it does not say. Raises BadSampleError if the image is bad,
    it or a mask has another size, or no mask is left.
    """
    image = read_image(image_path)
    height, width = image.shape[:2]
    if size not in (None, [height, width]):
        sizes = f"it is {height} x {width}, by the annotations {size[0]} x {size[1]} (height x width)"
        raise _misfit(image_path, json_path, sizes)
    masks, left_out = [], {}
    for annotation, segmentation in segmentations:
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

    Polygons of fewer than three corners are ignored. Raises ValueError if an RLE has another size or is
    broken, or a polygon is not made of numbers near the image.
    """
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise ValueError(f"its mask is {segmentation.get('size')}, the image {[height, width]}")
        if segmentation.get("counts") in (None, "", []):
            return np.zeros((height, width), bool)
        return rle_decode(segmentation)
    if segmentation is None:
        return np.zeros((height, width), bool)
    if not isinstance(segmentation, list):
        raise ValueError(f"its segmentation is {segmentation!r:.40}, neither polygons nor run lengths")
    return polygon_mask(segmentation, height, width)


def read_coco(path: Path, *keys: str) -> tuple[dict, dict[int, list[dict]]]:
    """The JSON's content and its annotations by image id; `keys` are fields that every annotation must have.

    Raises ValueError naming the file, and the image or annotation that is wrong, if it is no COCO file.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a whole COCO file ({type(error).__name__}: {error}); download it again"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a whole COCO file (no object at its top); download it again")
    by_image: dict[int, list[dict]] = {}
    for place, record in _records(path, content, "images", ("id", "file_name")):
        if not isinstance(record["file_name"], str) or not record["file_name"]:
            raise _wrong(path, place, "its file_name is no text")
        if any(_bad_side(record.get(side, 1)) for side in ("height", "width")):
            raise _wrong(path, place, "its height and width are no sizes in pixels")
        if record["id"] in by_image:
            raise _wrong(path, place, f"the id {record['id']!r} is taken by another image")
        by_image[record["id"]] = []
    for place, annotation in _records(path, content, "annotations", ("id", "image_id", *keys)):
        if annotation["image_id"] not in by_image:
            raise _wrong(path, place, f"no image has the id {annotation['image_id']!r}")
        by_image[annotation["image_id"]].append(annotation)
    return content, by_image


def _records(path: Path, content: dict, kind: str, keys: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """Place in the file and record of each of `content[kind]`, which all have the `keys`.

    Raises ValueError.
    """
    records = content.get(kind)
    if not isinstance(records, list):
        raise ValueError(f"{path}: not a whole COCO file (no list of {kind}); download it again")
    for number, record in enumerate(records):
        place = f"{kind}[{number}]"
        if not isinstance(record, dict):
            raise _wrong(path, place, "it is no object")
        for key in keys:
            if key not in record:
                raise _wrong(path, place, f"it has no {key}")
            if key.endswith("id") and not isinstance(record[key], (int, str)):
                raise _wrong(path, place, f"its {key} is {record[key]!r:.40}, no id")
        yield place, record


def _wrong(path: Path, place: str, reason: str) -> ValueError:
    return ValueError(
        f"{path}: not a whole COCO file ({place}: {reason}); mend the entry or download the file again"
    )


def _bad_side(side: object) -> bool:
    return isinstance(side, bool) or not isinstance(side, int) or side <= 0


def find_json(folder: Path, *names: str) -> Path:
    """The first of `names` that lies in `folder` or `folder/annotations`. Raises FileNotFoundError."""
    places = [folder / inner / name for name in names for inner in (".", "annotations")]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{places[0]}: file is missing; put the data set's annotations there")


def _entityseg_image(pack: Path, inner: str, reduced: bool) -> Path:
    """Where the image of a pack lies; the first guess if nowhere, so that reading it says it is missing."""
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
