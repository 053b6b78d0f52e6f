"""Reading image, mask and label files, with one clear error for each way in which they can be bad."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112  # EXIF tag; 1 = upright, 5-8 = height and width exchanged
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadSampleError(ValueError):
    """A sample that cannot be used; the message names the file and the remedy.

    `path` is the offending file and `reason` the message without it.
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: Path, data: bytes | None = None) -> np.ndarray:
    """Image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    `data` holds the file's bytes when it lies inside an archive; `path` then only names it.
    Raises BadSampleError if the file is missing, truncated or no image.
    """
    return np.asarray(_open(path, data).convert("RGB"))


def read_mask(path: Path, threshold: int | None = None) -> np.ndarray:
    """Binary mask as (H, W) bool.

    With a `threshold` (0..254) foreground is `value > threshold` on the 0..255 scale and nothing is guessed.
    Without one the scale is detected: a maximum of 1 means 0/1, a maximum above 128 means 0/255 (cut at > 128,
    as HQ-SAM), anything else is an error. Three-channel files are accepted when the channels are equal.
    Raises BadSampleError if the file is missing, truncated, coloured, on another scale, or has no foreground.
    """
    gray = _gray(path)
    top = int(gray.max())
    if top == 0:
        raise BadSampleError(path, "mask has no foreground; remove the sample or restore its mask")
    if threshold is None:
        if 1 < top <= 128:
            raise BadSampleError(
                path, f"mask values end at {top}, neither 0/1 nor 0/255; re-save the mask as 0/255"
            )
        threshold = 0 if top == 1 else 128
    mask = gray > threshold
    if not mask.any():
        found = (
            "holds 0/1 values where 0/255 is expected"
            if top == 1
            else f"has no value above {threshold}, only {top}"
        )
        raise BadSampleError(path, f"mask {found}; re-save it as 0/255")
    return mask


def read_labels(path: Path) -> np.ndarray:
    """Label map as (H, W) integers: palette indices, gray values, or one of three equal channels.

    Raises BadSampleError if the file is missing, truncated or coloured.
    """
    return _one_channel(np.asarray(_open(path)), path)


def require_same_size(image: np.ndarray, image_path: Path, mask: np.ndarray, mask_path: Path) -> None:
    """Raise BadSampleError naming both files unless `image` (H, W, 3) and `mask` (H, W) agree in size.

    A turn that keeps the size (180 degrees, or a square image) cannot be seen here.
    """
    height, width = image.shape[:2]
    if mask.shape == (height, width):
        return
    reason = f"mask is {_size(mask)}, but the image {image_path} is {_size(image)}"
    if mask.shape == (width, height) and is_turned(image_path):
        reason += (
            " once its EXIF orientation is applied; turn the mask upright, or remove the tag if it is wrong"
        )
    else:
        reason += " (height x width); restore the pair that belongs together"
    raise BadSampleError(mask_path, reason)


def is_turned(path: Path) -> bool:
    """Whether the file's EXIF orientation exchanges height and width. False for what cannot be opened."""
    try:
        with Image.open(path) as picture:
            return picture.getexif().get(ORIENTATION, 1) >= 5
    except UNREADABLE:
        return False


def _open(path: Path, data: bytes | None = None) -> Image.Image:
    """Decoded upright PIL image. Raises BadSampleError if missing or unreadable."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as picture:
            picture.load()
            if picture.getexif().get(ORIENTATION, 1) != 1:
                return ImageOps.exif_transpose(picture)
            return picture
    except FileNotFoundError:
        raise BadSampleError(path, "file is missing; restore it or remove the sample") from None
    except UNREADABLE as error:
        raise BadSampleError(
            path, f"file is truncated or not an image ({error}); download it again"
        ) from error


def _gray(path: Path) -> np.ndarray:
    """Gray values (H, W) on the file's own 8-bit scale; 16-bit values are brought to 0..255."""
    picture = _open(path)
    if picture.mode in ("1", "LA"):
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB", "I", "F") and not picture.mode.startswith("I;"):
        picture = picture.convert("RGB")  # palette colours, transparency, CMYK
    values = _one_channel(np.asarray(picture), path)
    return values // 257 if values.max() > 255 else values


def _one_channel(values: np.ndarray, path: Path) -> np.ndarray:
    """(H, W) from (H, W) or (H, W, 3 or 4); raises BadSampleError if the colour channels differ."""
    if values.ndim == 3:
        if (values[..., :3] != values[..., :1]).any():
            raise BadSampleError(
                path, "mask has colours (its three channels differ); re-save it with one channel"
            )
        values = values[..., 0]
    return values


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
