"""What the values of a mask file mean: one object, a label for each object, or nothing that makes sense."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sumlib.data.images import MAX_LABELS, ORIENTATION, BadSampleError
from sumlib.pipeline.own.reading.pictures import TURNS, opened, turned
from sumlib.pipeline.own.reading.problems import BadFile

COLOURS = 256
"""A coloured mask with more colours than this is a picture."""
LABELS_FROM = 0.2
"""Share of files with more than two values from which masks are label maps; fewer are mistakes."""
JPEG_BAND = 64
"""So far from black or white a lossy file may be where it means them."""


@dataclass(frozen=True)
class Rules:
    """How masks are read: what a project says, and what was found by looking. Picklable."""

    form: str = "binary"
    """"binary" or "labels"."""
    foreground: int | None = None
    ignore: tuple[int, ...] | None = None
    split: bool = False
    contrast: str = "percentiles"
    code: str = ""
    """Hash of the readers' code: what was found by other code is not believed."""


@dataclass(frozen=True)
class Values:
    """The values of a mask file."""

    array: np.ndarray
    """(H, W) whole numbers: grey values, palette indices, or colours as r * 65536 + g * 256 + b."""
    scale: str
    """"grey", "palette", "colours", "alpha" or "jpeg"."""


def read_values(path: Path) -> Values:
    """The values of a mask file, turned by its own EXIF orientation if it has one.

    A palette is read by index, unless its colours in use are black and white. Of a picture with transparency
    whose colour is the same everywhere, the transparency is the mask. Raises BadSampleError.
    """
    with opened(path) as picture:
        orientation = picture.getexif().get(ORIENTATION, 1)
        lossy = picture.format in ("JPEG", "MPO") or (
            picture.format == "WEBP" and b"VP8L" not in path.read_bytes()[:64]
        )
        picture.load()
        upright_picture = picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
        array, scale = _plain(upright_picture, path)
    if array.dtype.kind == "f":
        array = _whole(array, path)
    if array.dtype.kind == "i" and array.min() < 0:
        raise BadFile(path, f"holds negative values, down to {array.min()}; save the mask anew", "values")
    return Values(array, "jpeg" if lossy and scale == "grey" else scale)


def _plain(picture: Image.Image, path: Path) -> tuple[np.ndarray, str]:
    """Values (H, W) of a picture and what they are."""
    if picture.mode == "P":
        indices = np.asarray(picture)
        used = np.unique(indices)
        table = np.array(picture.getpalette("RGB"), np.int64).reshape(-1, 3)
        table = np.vstack([table, np.zeros((256 - len(table), 3), np.int64)])
        if len(used) == 2 and {tuple(table[i]) for i in used.tolist()} == {(0, 0, 0), (255, 255, 255)}:
            return table[indices, 0].astype(np.uint8), "grey"
        return indices, "palette"
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        rgba = np.asarray(picture.convert("RGBA"))
        if np.ptp(rgba[..., 3]) and not np.ptp(rgba[..., :3], axis=(0, 1)).any():
            return rgba[..., 3], "alpha"
        return _one(rgba[..., :3], path)
    if picture.mode in ("L", "1", "I", "F") or picture.mode.startswith("I;"):
        values = np.asarray(picture)
        return values.astype(np.uint8) if values.dtype == bool else values, "grey"
    return _one(np.asarray(picture.convert("RGB")), path)


def _one(rgb: np.ndarray, path: Path) -> tuple[np.ndarray, str]:
    """One value a pixel from colours (H, W, 3): grey if the channels agree, nearly so in lossy files."""
    if (rgb == rgb[..., :1]).all():
        return rgb[..., 0], "grey"
    codes = rgb.astype(np.int64) @ np.array([65536, 256, 1])
    if (count := len(np.unique(codes))) > COLOURS:
        reason = f"has {count} colours: it is a picture, no mask; save masks as PNG with one value an object"
        raise BadFile(path, reason, "values")
    return codes, "colours"


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    """Floating-point values as whole numbers; those in [0, 1] that are not whole count as 0..255."""
    if not np.isfinite(values).all():
        raise BadFile(path, "holds values that are not finite; save the mask anew", "values")
    if (values % 1 == 0).all():
        return values.astype(np.int64)
    if values.min() >= 0 and values.max() <= 1:
        return (values * 255).round().astype(np.int64)
    raise BadFile(path, "values are no whole numbers; save the mask as integers", "values")


def kind(values: Values) -> str:
    """What a file's values look like: "binary", "soft", "labels" or "picture".

    Binary: at most two values. Soft: black and white with greys between, as smoothed or lossy files have. A
    picture: many values, and neighbours that rarely agree.

    >>> kind(Values(np.array([[0, 1], [1, 2]]), "grey")), kind(Values(np.array([[0, 7]]), "grey"))
    ('labels', 'binary')
    """
    array = values.array
    found, counts = np.unique(array, return_counts=True)
    if len(found) <= 2:
        return "binary"
    band = JPEG_BAND if values.scale == "jpeg" else 0
    ends = counts[(found <= found[0] + band) | (found >= found[-1] - band)].sum() / array.size
    grey = values.scale != "colours" and found[0] <= band and found[-1] >= 128
    if grey and (band or len(found) >= 8) and ends >= 0.9:
        return "soft"
    agree = (array[:, 1:] == array[:, :-1]).mean() if array.shape[1] > 1 else 1.0
    many = len(found) > MAX_LABELS or (len(found) > 32 and agree < 0.6)
    return "picture" if many or values.scale == "jpeg" else "labels"


@dataclass(frozen=True)
class Meaning:
    """What was understood of a folder of masks."""

    form: str
    """"binary" or "labels"."""
    text: str
    """In words, with how to say otherwise."""


def understand(paths: Sequence[Path], form: str = "auto", looked_at: int = 24) -> Meaning:
    """What the values of mask files mean, from up to ``looked_at`` of them, evenly spaced."""
    spread = np.linspace(0, len(paths) - 1, looked_at).astype(int).tolist() if paths else []
    kinds, sets, scales = Counter(), Counter(), Counter()
    for place in dict.fromkeys(spread):
        try:
            values = read_values(paths[place])
        except BadSampleError:
            continue
        kinds[kind(values)] += 1
        scales[values.scale] += 1
        found = np.unique(values.array)
        sets["/".join(map(str, found)) if len(found) <= 2 else f"{found[0]} to {found[-1]}"] += 1
    if form == "auto":
        form = "labels" if kinds["labels"] >= LABELS_FROM * sum(kinds.values()) > 0 else "binary"
    seen = ", ".join(f"{text} ({count})" for text, count in sets.most_common(3)) or "none"
    what = {"colours": " of colours", "palette": " of palette indices"}.get(_most(scales), "")
    where = f"values{what} {seen} in {sum(kinds.values())} files looked at"
    if form == "binary":
        soft = "; grey is cut in the middle" if kinds["soft"] else ""
        text = f"binary masks: {where}; each file is one mask{soft}. Otherwise say `form: labels`"
    else:
        text = f"label maps: {where}; each value but 0 is one mask. Otherwise say `form: binary`"
    return Meaning(form, text)


def _most(counter: Counter) -> str:
    return counter.most_common(1)[0][0] if counter else ""


def read_masks(path: Path, rules: Rules) -> list[np.ndarray]:
    """The masks (H, W) bool of a file, none of them empty. Raises BadSampleError."""
    values = read_values(path)
    return (_labels if rules.form == "labels" else _binary)(values, path, rules)


def _binary(values: Values, path: Path, rules: Rules) -> list[np.ndarray]:
    array, found = values.array, np.unique(values.array)
    if rules.foreground is not None:
        mask = array == rules.foreground
    elif len(found) == 1:
        mask = array > 0
    else:
        what = kind(values)
        if what not in ("binary", "soft"):
            reason = (
                f"holds {len(found)} values, from {found[0]} to {found[-1]}, where two are expected; "
                "if each is an object, say `form: labels`"
            )
            raise BadFile(path, reason, "values")
        mask = array > (int(found[0]) + int(found[-1])) / 2
    if not mask.any():
        raise BadFile(path, "mask is empty; remove it, or draw the object", "empty")
    return [mask]


def _labels(values: Values, path: Path, rules: Rules) -> list[np.ndarray]:
    array, what = values.array, kind(values)
    if what == "picture":
        reason = "looks like a photograph, not like a map of labels; put the mask there"
        raise BadFile(path, reason, "values")
    if what == "soft":
        return _binary(values, path, rules)
    found = [int(value) for value in np.unique(array) if value]
    ignored = rules.ignore if rules.ignore is not None else _void(found)
    masks = [array == value for value in found if value not in ignored]
    if not masks:
        raise BadFile(path, "label map holds nothing but background; remove it, or draw the objects", "empty")
    return masks


def _void(labels: list[int]) -> tuple[int, ...]:
    """255, where it marks what belongs to no object: it stands apart from the other labels.

    >>> _void([1, 2, 255]), _void([255]), _void([1, 254, 255])
    ((255,), (), ())
    """
    others = [label for label in labels if label != 255]
    return (255,) if 255 in labels and others and max(others) < 200 else ()


def upright(mask: np.ndarray, size: tuple[int, int], orientation: int) -> tuple[np.ndarray, bool] | None:
    """A mask (H, W) for an image of ``size`` upright, and whether it had to be turned; None if none fits.

    An image with an EXIF orientation is turned upright. A mask that has the upright size is taken as it is,
    one that has the size of the file as stored is turned as the image was. Where both are the same, the mask
    is taken to be upright.

    >>> mask = np.array([[True, False, False]])
    >>> upright(mask, (3, 1), 6)[0].tolist(), upright(mask, (2, 2), 6)
    ([[True], [False], [False]], None)
    """
    if mask.shape == size:
        return mask, False
    if orientation >= 5 and mask.shape == size[::-1]:
        return turned(mask, orientation), True
    return None
