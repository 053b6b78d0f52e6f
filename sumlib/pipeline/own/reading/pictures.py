"""Images as users have them: any number of bits, turned by EXIF, with transparency, of too many channels."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from sumlib.data.images import ORIENTATION, UNREADABLE, BadSampleError, read_image
from sumlib.pipeline.own.reading.problems import BadFile

PERCENTILES = (0.1, 99.9)
"""Between them the values of an image of more than 8 bits are stretched."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of an EXIF orientation upright."""
SAMPLES_PER_PIXEL = 277  # TIFF tag


@dataclass(frozen=True)
class Picture:
    """An upright image and what is worth knowing of its file."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    orientation: int
    """EXIF orientation of the file, 1: none."""
    notes: tuple[tuple[str, str], ...] = ()
    """(kind, text)."""


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture of a file, its pixels not read yet. Raises BadFile for what is no picture."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile(path, "is no regular file but a pipe, device or folder; put the image there")
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise BadFile(path, "file is missing; restore it, or remove what belongs to it") from None
    except BadSampleError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(path) from error
    except UNREADABLE as error:
        raise BadFile(path, f"file is truncated or not an image ({error}); copy or save it again") from error


def _unidentified(path: Path) -> BadFile:
    """Why Pillow does not know a file: channels beyond what it reads, or no picture at all."""
    channels = _tiff_channels(path)
    if channels > 4:
        reason = f"has {channels} channels; choose three of them and save these as an RGB image"
        return BadFile(path, reason, "channels")
    return BadFile(path, "is no image that can be read, or is truncated; save it as PNG, JPEG or TIFF")


def _tiff_channels(path: Path) -> int:
    """Channels of a TIFF file by its first directory; 0 for other files."""
    try:
        with open(path, "rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            return int(tags.get(SAMPLES_PER_PIXEL, 1))
    except UNREADABLE:
        return 0


def read_picture(path: Path, contrast: str = "percentiles") -> Picture:
    """The image of a file, upright.

    With more than 8 bits a channel its values are stretched from their 0.1 to their 99.9 percentile
    (``contrast`` "percentiles"; all channels alike), or brought to 8 bits by their type ("type", see
    `sumlib.data.images.read_image`). Grey becomes RGB, transparency is ignored. Raises BadSampleError, also
    for more than three channels and for files of several pages.
    """
    with opened(path) as picture:
        mode, depth = picture.mode, _deep(picture)
        orientation = picture.getexif().get(ORIENTATION, 1)
        pages = getattr(picture, "n_frames", 1)
        if pages > 1 and picture.format in ("TIFF", "GIF", "WEBP", "PNG"):
            reason = f"holds {pages} pages; save each that you need as an image of its own"
            raise BadFile(path, reason, "channels")
        alpha = "A" in mode or mode in ("La", "RGBa") or "transparency" in picture.info
        values = _values(picture, path) if depth and contrast == "percentiles" else None
    notes = [("alpha", "transparency is ignored")] if alpha and mode != "LAB" else []
    if depth:
        rule = "stretched between their 0.1 and 99.9 percentiles" if values is not None else "scaled by type"
        notes.append(("deep", f"{depth}: {rule}"))
    pixels = read_image(path) if values is None else turned(_stretched(values, path), orientation)
    return Picture(pixels, orientation, tuple(notes))


def _deep(picture: Image.Image) -> str:
    """What is deeper than 8 bits in a picture, in words; empty if nothing is."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return {"I": "whole numbers of 16 or 32 bits", "F": "floating-point values"}.get(
            picture.mode, "16 bits"
        )
    codes = [part[3] for part in getattr(picture, "tile", [])]
    text = " ".join(str(code[0] if isinstance(code, tuple) else code) for code in codes)
    return "16 bits a channel" if ";16" in text else ""


def _values(picture: Image.Image, path: Path) -> np.ndarray:
    """The values of a deep picture as they are stored, (H, W) or (H, W, 3); Pillow cuts colours to 8 bits."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        picture.load()
        return np.asarray(picture)
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise BadFile(path, "16-bit colours cannot be read; save the image with 8 bits a channel")
    return (
        values[..., 2::-1] if values.ndim == 3 and values.shape[2] >= 3 else values.reshape(values.shape[:2])
    )


def _stretched(values: np.ndarray, path: Path) -> np.ndarray:
    """Values (H, W) or (H, W, 3) -> (H, W, 3) uint8. Raises BadFile if one is not finite."""
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise BadFile(path, "holds values that are not finite (NaN or infinity); save the file anew")
    low, high = np.percentile(values, PERCENTILES)
    if high <= low:  # nearly all values are the same
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    eight = scaled.clip(0, 255).round().astype(np.uint8)
    return eight if eight.ndim == 3 else np.repeat(eight[..., None], 3, 2)


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """An array (H, W) or (H, W, 3) of a file with that EXIF orientation, made upright.

    >>> turned(np.array([[1, 2], [3, 4]], np.uint8), 6).tolist()
    [[3, 1], [4, 2]]
    """
    if orientation not in TURNS:
        return array
    kind = array.dtype
    upright = Image.fromarray(array.astype(np.uint8)).transpose(TURNS[orientation])
    return np.asarray(upright).astype(kind)
