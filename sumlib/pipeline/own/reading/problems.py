"""What can be wrong with a user's files, by kind: reports count and group by it."""

from dataclasses import dataclass
from pathlib import Path

from sumlib.data.images import BadSampleError

LEFT_OUT = {
    "unreadable": "files that cannot be read",
    "channels": "images of more than three channels, or of several pages",
    "no image": "masks without an image",
    "duplicate": "images that share a name",
    "size": "masks of another size than their image",
    "values": "masks whose values are not understood",
    "empty": "empty masks",
    "whole": "masks of the whole image",
    "outside": "annotations that lie outside their image",
    "rle": "broken segmentations",
    "dangling": "annotations of no image",
    "listed twice": "annotations listed twice",
    "no mask": "images whose masks are all left out",
}
"""Kinds of what is left out."""
NOTED = {
    "without mask": "images without a mask",
    "tiny": "masks of which nothing is left at the model's size",
    "large": "masks of more than 95 % of the image: are they inverted?",
    "beyond": "outlines that reach beyond their image; they are cut at its edge",
    "turned": "masks turned by their image's EXIF orientation",
    "turn unknown": "images turned by EXIF to the same size; their masks are taken to be upright",
    "deep": "images of more than 8 bits",
    "alpha": "images with transparency, which is ignored",
    "crowd": "crowd annotations, which are no masks",
    "same picture": "images that are byte for byte the same as another",
    "held out": "unlabeled images that are held-out images, and are not used",
    "spaced name": "names with spaces or letters beyond ASCII, which work",
    "foreign": "pictures in a format that is not read; save them as PNG or JPEG",
    "unlabeled": "unlabeled images",
}
"""Kinds of what is kept, or is not an item of the data, and is worth knowing."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or worth knowing."""

    kind: str
    """A key of `LEFT_OUT` or `NOTED`."""
    name: str
    """The sample, or "sample#annotation" where only one mask is meant."""
    path: Path
    reason: str
    """What is wrong and what to do about it."""
    masks: int = 1
    """How many masks it takes away, if it leaves something out."""

    @property
    def left_out(self) -> bool:
        return self.kind in LEFT_OUT


class BadFile(BadSampleError):
    """A file that cannot be used, with the kind of what is wrong."""

    def __init__(self, path: Path, reason: str, kind: str = "unreadable"):
        super().__init__(path, reason)
        self.kind = kind


def kind_of(error: BadSampleError) -> str:
    """The kind of an error; errors of the other readers are of files that cannot be read."""
    return getattr(error, "kind", "unreadable")
