"""What the forgetting probe asks: SAM's confident masks of some images, the same ones for all models."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from sumlib.base.masks import rle_encode
from sumlib.base.progress import with_bar
from sumlib.config.params import PseudoLabelConfig
from sumlib.data.dataset import Dataset
from sumlib.data.images import BadSampleError
from sumlib.model.sum import Sum
from sumlib.pseudo.automatic import AutomaticMasks
from sumlib.pseudo.store import PseudoLabels

SIZES = {"small": 32**2 / (640 * 480), "medium": 96**2 / (640 * 480), "large": np.inf}
"""Shares of the image below which a mask is small, medium or large: COCO's, in its images of 640 x 480."""
INSIDE, SMALLER = 0.9, 0.8
"""A mask is a part if this share of it lies inside another mask, and its area is below that share of it."""
PROMPTS = ("point", "box")
_NESTING_SIDE = 256  # masks are compared with each other at this size, in pixels of the longest side


@dataclass(frozen=True)
class Extent:
    """How much is asked: bounds of the probe's cost, which grows with images x masks x prompts x rounds."""

    images: int = 50
    masks: int = 20
    """Of an image, at most."""
    prompts: tuple[str, ...] = PROMPTS
    """First prompts: "point", the one that produced the mask, and "box"."""
    rounds: tuple[int, ...] = (1,)
    """Rounds whose answers count; in each but the first a click corrects the largest error."""

    def __post_init__(self):
        if unknown := [prompt for prompt in self.prompts if prompt not in PROMPTS]:
            raise ValueError(f"no prompt {unknown[0]!r} in the probe; known are {', '.join(PROMPTS)}")
        if not self.rounds or min(self.rounds) < 1:
            raise ValueError(f"rounds are {self.rounds}; they are counted from 1")


@dataclass(frozen=True)
class ProbeImage:
    """SAM's confident masks of one image that are asked for again, in compact form."""

    index: int
    """Place of the image in the data set."""
    name: str
    trained: bool
    """Whether the image, without human masks, was used in training."""
    rles: tuple[dict, ...]
    """Masks of (H, W) as COCO's run lengths."""
    points: np.ndarray
    """(M, 2) float32 x, y in pixels of the image that produced each mask."""
    boxes: np.ndarray
    """(M, 4) float32 XYXY, pixels."""
    about: pd.DataFrame
    """A row a mask: area (share of the image), size, level, predicted_iou, stability."""


@dataclass(frozen=True)
class Probe:
    """What is asked, the same for all models: made once, by `make_probe`."""

    images: Dataset
    items: tuple[ProbeImage, ...]
    extent: Extent = Extent()
    skipped: tuple[str, ...] = ()
    """Images that could not be read, or in which SAM is sure of nothing."""

    @property
    def masks(self) -> int:
        return sum(len(item.rles) for item in self.items)


def make_probe(
    foundation: Sum,
    images: Dataset,
    config: PseudoLabelConfig,
    *,
    extent: Extent = Extent(),
    labels: PseudoLabels | None = None,
    trained: Collection[str] = (),
    progress: bool = True,
) -> Probe:
    """Choose images and SAM's confident masks in them; the same ones on every call.

    Images outside ``trained`` (names) come first; of each group they lie evenly over the data set. Of an
    image's masks up to ``extent.masks`` are taken, evenly over their order by area. ``labels`` are SAM's
    masks that were stored for some images, so that they need not be made again; they are held to the same
    thresholds. Without refined maps they are read faster. Raises ValueError where SAM is sure of no mask.
    """
    foundation.eval()
    stored = frozenset(labels.images) if labels is not None else frozenset()
    items: list[ProbeImage] = []
    skipped: list[str] = []
    # An image that is of no use makes room for the next one, and the number of tries is bounded.
    order = _order(images.names, frozenset(trained), extent.images)[: 2 * extent.images]
    for index in with_bar(order, "SAM's own masks", progress):
        if len(items) == extent.images:
            break
        name = images.names[index]
        found = _stored(labels, name, config) if name in stored else _made(foundation, images, index, config)
        if found is None or not len(found[0]):
            skipped.append(name)
        else:
            items.append(_item(index, name, name in trained, found, extent.masks))
    if not items:
        raise ValueError(
            f"{images.name}: SAM is sure of no mask in {len(skipped)} images: lower pred_iou_thresh or "
            "stability_thresh, or give other images"
        )
    return Probe(images, tuple(items), extent, tuple(skipped))


def _order(names: Sequence[str], trained: Collection[str], count: int) -> list[int]:
    """Numbers of the images in the order in which they are tried."""
    fresh = [k for k, name in enumerate(names) if name not in trained]
    seen = [k for k, name in enumerate(names) if name in trained]
    return [k for group in (fresh, seen) for k in _evenly_first(group, count)]


def _evenly_first(items: list[int], count: int) -> list[int]:
    """``count`` items that lie evenly, then the others.

    >>> _evenly_first([0, 1, 2, 3, 4], 2)
    [1, 3, 0, 2, 4]
    """
    chosen = [items[k] for k in _evenly(len(items), count)]
    return chosen + [item for item in items if item not in set(chosen)]


def _evenly(total: int, count: int) -> list[int]:
    """Up to ``count`` of the numbers below ``total``, each in the middle of its stretch.

    >>> _evenly(10, 2), _evenly(2, 5)
    ([2, 7], [0, 1])
    """
    count = min(total, count)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Masks (M, H, W) bool, points (M, 2), boxes (M, 4), predicted IoU (M,) and stability (M,)."""


@torch.no_grad()
def _made(foundation: Sum, images: Dataset, index: int, config: PseudoLabelConfig) -> Found | None:
    """None for an image that cannot be read, or in which nothing is found."""
    try:
        sample = images[index]
    except BadSampleError:
        return None
    embedding = foundation.encode(foundation.preprocess(sample.image)[None])
    data = AutomaticMasks(foundation, config)(embedding, sample.image.shape[:2])
    if not len(data["low"]):
        return None
    columns = ("masks", "points", "boxes", "iou_preds", "stability_score")
    return tuple(data[name].numpy() for name in columns)


def _stored(labels: PseudoLabels, name: str, config: PseudoLabelConfig) -> Found:
    label = labels.read(name)
    sure = (label.predicted_iou > config.pred_iou_thresh) & (label.stability >= config.stability_thresh)
    columns = (label.masks, label.points, label.boxes, label.predicted_iou, label.stability)
    return tuple(column[sure] for column in columns)


def _item(index: int, name: str, trained: bool, found: Found, limit: int) -> ProbeImage:
    """The probe's masks of one image, from all of its confident ones."""
    masks, points, boxes, predicted, stability = found
    share = masks.mean((1, 2))
    about = pd.DataFrame(
        {
            "area": share,
            "size": [next(size for size, least in SIZES.items() if one < least) for one in share],
            "level": levels(masks),
            "predicted_iou": predicted,
            "stability": stability,
        }
    )
    by_area = np.argsort(share, kind="stable")
    rows = by_area[_evenly(len(by_area), limit)]
    rles = tuple(rle_encode(masks[row]) for row in rows)
    chosen = about.iloc[rows].reset_index(drop=True)
    return ProbeImage(index, name, trained, rles, points[rows], boxes[rows], chosen)


def levels(masks: np.ndarray) -> list[str]:
    """ "part" for a mask that lies inside another one of the image, else "whole"; (M, H, W) bool -> M words.

    >>> inner, outer = np.eye(4, dtype=bool) & (np.arange(4) < 2), np.ones((4, 4), bool)
    >>> levels(np.stack([inner, outer]))
    ['part', 'whole']
    """
    step = max(1, max(masks.shape[1:]) // _NESTING_SIDE)
    small = masks[:, step // 2 :: step, step // 2 :: step].reshape(len(masks), -1).astype(np.float32)
    area = np.maximum(small.sum(1), 1)
    inside = (small @ small.T) / area[:, None] >= INSIDE  # (M, M): row in column
    part = (inside & (area[:, None] < SMALLER * area[None])).any(1)
    return ["part" if one else "whole" for one in part]
