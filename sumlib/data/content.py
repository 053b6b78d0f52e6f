"""A hash of what is in a data set: of images and masks, not of names and dates of files."""

import hashlib
from collections.abc import Sequence

import numpy as np

from sumlib.data.dataset import Sample


def content_hash(samples: Sequence[Sample], limit: int = 2000) -> str:
    """Hash (16 hex digits) of the names, tasks, pixels and masks of ``samples``, in their order.

    Every one is read; of more than ``limit`` as many, evenly spaced, and their number counts.

    >>> sample = Sample("a", np.zeros((2, 2, 3), np.uint8), np.ones((1, 2, 2), bool), 1, "x")
    >>> content_hash([sample]) == content_hash([sample]), content_hash([sample]) == content_hash([])
    (True, False)
    """
    digest = hashlib.sha256()
    digest.update(str(len(samples)).encode())
    for number in np.linspace(0, len(samples) - 1, min(len(samples), limit)).astype(int):
        sample = samples[int(number)]
        digest.update(
            f"{sample.name} {int(sample.task)} {sample.image.shape} {sample.masks.shape}\n".encode()
        )
        digest.update(np.ascontiguousarray(sample.image).data)
        digest.update(np.packbits(sample.masks).data)
    return digest.hexdigest()[:16]
