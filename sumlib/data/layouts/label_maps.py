"""Adapters for label maps: LV-MHP v2 (Bodypart) and EasyPortrait."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from sumlib.data.dataset import Entry, Loaded
from sumlib.data.images import MAX_LABELS, BadSampleError, read_image, read_labels, require_same_size

PORTRAIT_PARTS = range(2, 9)
"""EasyPortrait's skin, brows, eyes, lips and teeth.

1 is the person around them, which is no part (inferred).
"""


def lv_mhp(root: Path, split: str = "val") -> list[Entry]:
    """LV-MHP v2: `<split>/images/<id>.jpg`, `<split>/parsing_annos/<id>_NN_MM.png` (person MM of NN).

    A part is one label of one person's file. Ids come in the order of `list/<split>.txt`, or by number where
    there is no list ("the first 1,000 of val" is taken to mean this order). Raises FileNotFoundError if a
    folder is missing.
    """
    images, people = root / split / "images", defaultdict(list)
    for path in sorted(existing(root / split / "parsing_annos").glob("*.png")):
        people[path.stem.split("_")[0]].append(path)
    listing = root / "list" / f"{split}.txt"
    if listing.is_file():
        ids = [Path(line).stem for line in listing.read_text().split()]
    else:
        ids = sorted(
            {f.stem for f in existing(images).glob("*.jpg")} | set(people), key=lambda i: (len(i), i)
        )
    return [
        Entry(i, images / f"{i}.jpg", partial(load_labels, images / f"{i}.jpg", tuple(people[i]), positive))
        for i in ids
    ]


def easyportrait(root: Path, split: str = "val") -> list[Entry]:
    """EasyPortrait: `images/<split>/<uuid>.jpg`, `annotations/<split>/<uuid>.png`, exclusive labels 0-8.

    Parts are the labels of `PORTRAIT_PARTS`. "The first 1,000 of val" is taken in the order of the names.
    """
    images, labels = root / "images" / split, root / "annotations" / split
    stems = {f.stem for f in existing(images).glob("*.jpg")} | {
        f.stem for f in existing(labels).glob("*.png")
    }
    return [
        Entry(
            s,
            images / f"{s}.jpg",
            partial(load_labels, images / f"{s}.jpg", (labels / f"{s}.png",), _portrait_part),
        )
        for s in sorted(stems)
    ]


def positive(value: int) -> bool:
    return value > 0


def _portrait_part(value: int) -> bool:
    return value in PORTRAIT_PARTS


def load_labels(image_path: Path, label_paths: tuple[Path, ...], counts: Callable[[int], bool]) -> Loaded:
    """Image (H, W, 3) uint8 and a mask (M, H, W) bool for each value of each label map (up to 16 bit) that
    `counts`.

    Raises BadSampleError if a file is bad, sizes differ, or no label is present.
    """
    image, masks = read_image(image_path), []
    for path in label_paths:
        labels = read_labels(path)
        require_same_size(image, image_path, labels, path)
        values = [value for value in np.unique(labels).tolist() if counts(value)]
        if len(values) > MAX_LABELS:
            reason = f"holds {len(values)} labels, more than {MAX_LABELS}; restore the label map"
            raise BadSampleError(path, reason)
        masks += [labels == value for value in values]
    if not masks:
        where = label_paths[0] if label_paths else image_path
        raise BadSampleError(
            where, f"holds no mask for the image {image_path}; remove it or restore its label map"
        )
    return image, np.stack(masks), {}


def existing(folder: Path) -> Path:
    """The folder, or FileNotFoundError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: folder is missing; unpack the data set so that it exists")
    return folder
