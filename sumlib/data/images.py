"""Reading image, mask and label files, with one clear error for each way in which they can be bad."""

import io
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

ORIENTATION = 0x0112  # EXIF tag; 1 = upright, 5-8 = height and width exchanged
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
    Image.DecompressionBombError,
)
"""What Pillow raises for one broken file or another."""
MAX_LABELS = 5000
"""A label map with more values than this is taken to be a picture."""


class BadSampleError(ValueError):
    """A sample that cannot be used; the message names the file and the remedy.

    `path` is the offending file and `reason` the message without it.
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

    @property
    def transient(self) -> bool:
        """Whether the machine failed and not the file: no memory, no permission, too many open files.

        What Pillow and zlib say of broken files has no error number.
        """
        cause = self.__cause__
        return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


def read_image(path: Path, data: bytes | None = None) -> np.ndarray:
    """Image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    `data` holds the file's bytes when it lies inside an archive; `path` then only names it.

    Deeper pictures are brought to 8 bits by their type, never by their content: 16-bit values v become
    round(255 v / 65535); floats are in [0, 1] if none is above 1, else in [0, 255]. CMYK is converted by the
    file's colour profile, without one by the plain formula. Transparency is ignored. Raises BadSampleError if
    the file is missing, truncated or no image, or its values are 32-bit integers, not finite or outside the
    range.
    """
    picture = _open(path, data)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return np.repeat(_eight_bit(picture, path)[..., None], 3, axis=2)
    try:
        if picture.mode == "CMYK" and (profile := picture.info.get("icc_profile")):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            picture = ImageCms.profileToProfile(
                picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        return np.asarray(picture.convert("RGB"))
    except UNREADABLE as error:
        reason = f"colours of mode {picture.mode} cannot be converted ({error}); save the image as RGB"
        raise BadSampleError(path, reason) from error


def _eight_bit(picture: Image.Image, path: Path) -> np.ndarray:
    """Grey values (H, W) of 16 bits or floats as uint8, by the rule of `read_image`.

    Raises BadSampleError.
    """
    values = _numbers(picture, path)
    top = float(values.max())
    if picture.mode == "F":
        if top > 255:
            reason = (
                f"float values reach {top:g}, neither [0, 1] nor [0, 255]; save the image with 8 or 16 bits"
            )
            raise BadSampleError(path, reason)
        return (values * (255 if top <= 1 else 1)).round().astype(np.uint8)
    if picture.mode == "I" and (picture.format != "PNG" or top > 65535):
        reason = "holds 32-bit integers, whose range is not stated; save the image with 8 or 16 bits"
        raise BadSampleError(path, reason)
    return (values.astype(np.float64) * (255 / 65535)).round().astype(np.uint8)


def _numbers(picture: Image.Image, path: Path) -> np.ndarray:
    """The values of a picture. Raises BadSampleError if one is negative or not finite."""
    values = np.asarray(picture)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadSampleError(path, "holds values that are not finite (NaN or infinity); save the file anew")
    if values.dtype.kind in "if" and values.min() < 0:
        raise BadSampleError(path, f"holds negative values, down to {values.min():g}; save the file anew")
    return values


def read_mask(path: Path, threshold: int | None = None) -> np.ndarray:
    """Binary mask as (H, W) bool.

    With a `threshold` (0..254) foreground is `value > threshold` on the 0..255 scale and nothing is guessed.
    Without one the scale is detected: a maximum of 1 means 0/1, a maximum above 128 means 0/255 (cut at >
    128, as HQ-SAM), anything else is an error. Three-channel files are accepted when the channels are equal.
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

    Raises BadSampleError if the file is missing, truncated, coloured, or holds values that are no labels.
    """
    picture = _open(path)
    if picture.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        raise BadSampleError(
            path, f"is a colour picture ({picture.mode}), no label map; save labels as grey values"
        )
    labels = _one_channel(_numbers(picture, path), path)
    if picture.mode == "F":
        whole = labels.astype(np.int64)
        if (whole != labels).any():
            raise BadSampleError(path, "labels are not whole numbers; save them as integers")
        labels = whole
    return labels


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
        _require_file(path)
        with Image.open(path) as picture:
            return picture.getexif().get(ORIENTATION, 1) >= 5
    except UNREADABLE:
        return False


def _open(path: Path, data: bytes | None = None) -> Image.Image:
    """Decoded upright PIL image. Raises BadSampleError if missing or unreadable."""
    try:
        if data is None:
            _require_file(path)
        with Image.open(path if data is None else io.BytesIO(data)) as picture:
            picture.load()
            if picture.getexif().get(ORIENTATION, 1) == 1:
                return picture
            turned, turned_format = ImageOps.exif_transpose(picture), picture.format
            turned.format = turned_format  # transposing forgets it
            return turned
    except FileNotFoundError:
        raise BadSampleError(path, "file is missing; restore it or remove the sample") from None
    except BadSampleError:
        raise
    except UNREADABLE as error:
        raise BadSampleError(
            path, f"file is truncated or not an image ({error}); download it again"
        ) from error


def _require_file(path: Path) -> None:
    """Raise BadSampleError for a named pipe, a device or a folder: opening it could wait for ever."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise BadSampleError(path, "is no regular file but a pipe, device or folder; put the image there")


def _gray(path: Path) -> np.ndarray:
    """Gray values (H, W) of a mask, on the file's own 8-bit scale; 16-bit values are brought to 0..255.

    Floats in [0, 1] that are not all whole are brought to 0..255, too.
    """
    picture = _open(path)
    if picture.mode in ("1", "LA"):
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB", "I", "F") and not picture.mode.startswith("I;"):
        try:
            picture = picture.convert("RGB")  # palette colours, transparency, CMYK
        except UNREADABLE as error:
            raise BadSampleError(
                path, f"mask cannot be converted ({error}); re-save it with one channel"
            ) from error
    values = _one_channel(_numbers(picture, path), path)
    top = values.max()
    if top > 65535:
        raise BadSampleError(
            path, f"mask values end at {top:g}, more than 16 bits; re-save the mask as 0/255"
        )
    if picture.mode == "F" and top <= 1 and (values % 1).any():
        return values * 255
    return values // 257 if top > 255 else values


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
