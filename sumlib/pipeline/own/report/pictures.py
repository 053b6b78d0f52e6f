"""Pictures of single masks: before and after one click, cut out around the mask; and maps of uncertainty."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from sumlib.data.dataset import Dataset, Sample
from sumlib.evaluate import interact
from sumlib.figures.style import BLUE, GREEN, ORANGE, YELLOW
from sumlib.model.sum import Sum
from sumlib.pipeline.own.evaluation import task_of
from sumlib.pipeline.own.probe import FOUNDATION, TUNED
from sumlib.pipeline.own.report.results import PICTURES, Example
from sumlib.pseudo.store import PseudoLabels
from sumlib.sampler import first_click

COLOURS = {FOUNDATION: ORANGE, TUNED: BLUE, "truth": GREEN}
"""Outlines, as in all figures."""
SIDE = 360
"""Longest side of a picture in pixels; smaller cuts are enlarged by whole pixels."""
MARGIN = 0.35
"""Of the mask's size that is shown around it, at least."""
LEAST = 0.2
"""Share of the image's longer side that a cut spans at least."""
CHANGED = 0.05
"""Change of IoU below which a mask is no example."""

Box = tuple[int, int, int, int]
"""First row, end of rows, first column, end of columns, in pixels."""


# ---- before and after ---------------------------------------------------------------------------


def draw_examples(
    models: Mapping[str, Sum],
    dataset: Dataset,
    table: pd.DataFrame,
    folder: Path,
    *,
    count: int = 4,
    names: tuple[str, str] = (FOUNDATION, TUNED),
    least: float = CHANGED,
) -> tuple[Example, ...]:
    """Draw the masks that gained and that lost most at one click, ``count`` of each, at most one an image.

    ``table`` has rows of `evaluate_own` of ``dataset`` for both models called ``names``, in ``models``.
    Pictures go to `PICTURES` below ``folder``: image and click, first model, second model, truth. Masks that
    changed by less than ``least`` (IoU) are shown in neither group.
    """
    changes = _changes(table, names)
    places = {name: index for index, name in enumerate(dataset.names)}
    groups = {"better": changes[changes["change"] > least], "worse": changes[changes["change"] < -least]}
    found = []
    for kind, group in groups.items():
        ordered = group.sort_values("change", ascending=kind == "worse", kind="stable")
        chosen = ordered.drop_duplicates("image").head(count)
        for number, row in enumerate(chosen.itertuples(), 1):
            sample = dataset[places[row.image]]
            found.append(_example(models, sample, int(row.mask), names, kind, f"{kind}-{number}", folder))
    return tuple(found)


def _changes(table: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    first, second = (table[(table["model"] == name) & (table["round"] == 1)] for name in names)
    pairs = second.merge(first, on=["image", "mask"], suffixes=("", "_before"))
    return pairs.assign(change=pairs["iou"] - pairs["iou_before"])


def _example(
    models: Mapping[str, Sum],
    sample: Sample,
    mask: int,
    names: tuple[str, str],
    kind: str,
    stem: str,
    folder: Path,
) -> Example:
    truth = torch.from_numpy(sample.masks[[mask]])
    click = tuple(first_click(truth)[0].tolist())
    answers = {name: _answer(models[name], sample, truth) for name in names}
    masks = [truth[0].numpy(), *(answer[0] for answer in answers.values())]
    box = cut(np.any(masks, 0), click)
    drawn = {"image and click": picture(sample.image, box, click=click)}
    for name, colour in zip(names, (ORANGE, BLUE)):
        answer, iou = answers[name]
        drawn[f"{name}: {100 * iou:.0f}"] = picture(sample.image, box, answer, colour, click)
    drawn["truth"] = picture(sample.image, box, masks[0], GREEN)
    files = [
        (title, save_picture(one, folder, f"{stem}-{k}")) for k, (title, one) in enumerate(drawn.items(), 1)
    ]
    before, after = (100 * answer[1] for answer in answers.values())
    caption = f"`{sample.name}`, mask {mask + 1}: IoU {before:.0f} before, {after:.0f} after"
    return Example(kind, tuple(files), caption)


@torch.no_grad()
def _answer(model: Sum, sample: Sample, truth: Tensor) -> tuple[np.ndarray, float]:
    """The mask (H, W) bool after one click, and its IoU, as `evaluate_own` scores it."""
    embedding = model.encode(model.preprocess(sample.image)[None])
    ((iou, _, mask),) = interact(
        model,
        embedding,
        torch.zeros(1, dtype=torch.long),
        truth,
        prompt="point",
        setting="oracle",
        rounds=1,
        task=task_of(model, int(sample.task)),
        task_rounds="first",
        keep=True,
    )
    return mask[0].cpu().numpy(), iou.item()


# ---- uncertainty --------------------------------------------------------------------------------


def draw_uncertainty(
    labels: PseudoLabels, images: Dataset, folder: Path, *, count: int = 4
) -> tuple[Example, ...]:
    """Draw ``count`` pseudo-labels with their uncertainty, of images that lie evenly over the set.

    Of an image the largest mask below half of it is taken, so that nothing is picked by its look. ``labels``
    must hold certainty. Pictures: image with SAM's mask, uncertainty u = 1 - c, refined mask.
    """
    places = {name: index for index, name in enumerate(images.names)}
    usable = [name for name in labels.images if name in places]
    step = len(usable) / max(1, count)
    found = []
    for number in range(min(count, len(usable))):
        name = usable[int((number + 0.5) * step) if step > 1 else number]
        areas, size = labels.areas(name, "sam"), labels.size(name)
        row = int(np.where(areas < 0.5 * size[0] * size[1], areas, -areas).argmax())
        label, sample = labels.read(name, [row]), images[places[name]]
        if label.certainty is None:
            raise ValueError(
                f"{labels.path}: has no certainty; use the file that the uncertainty stage wrote"
            )
        found.append(_uncertain(label, sample, f"uncertainty-{number + 1}", folder))
    return tuple(found)


def _uncertain(label, sample: Sample, stem: str, folder: Path) -> Example:
    uncertainty = 1 - label.certainty[0]
    box = cut(label.masks[0] | label.refined[0])
    heat = (255 * matplotlib.colormaps["magma"](np.clip(uncertainty, 0, 1))[..., :3]).astype(np.uint8)
    drawn = {
        "image": picture(sample.image, box),
        "SAM's mask": picture(sample.image, box, label.masks[0], ORANGE),
        "uncertainty": picture(heat, box),
        "refined mask": picture(sample.image, box, label.refined[0], BLUE),
    }
    files = [
        (title, save_picture(one, folder, f"{stem}-{k}")) for k, (title, one) in enumerate(drawn.items(), 1)
    ]
    inside = 100 * float((uncertainty[label.masks[0] | label.refined[0]] > 0.4).mean())
    return Example("uncertainty", tuple(files), f"`{sample.name}`: {inside:.0f} % of the mask is uncertain")


# ---- drawing ------------------------------------------------------------------------------------


def cut(mask: np.ndarray, click: tuple[int, int] | None = None) -> Box:
    """A stretch of the image around ``mask`` (H, W) bool and ``click`` (x, y), with some surroundings."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0, height, 0, width)
    spans = [(rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)]
    if click is not None:
        spans = [(min(a, c), max(b, c + 1)) for (a, b), c in zip(spans, click[::-1])]
    sides = [(1 + 2 * MARGIN) * (end - start) for start, end in spans]
    side = max(*sides, LEAST * max(height, width))  # about square, so that a row of pictures is even
    stretch = []
    for (start, end), total in zip(spans, (height, width)):
        length = min(total, round(side))
        first = min(max(0, round((start + end - length) / 2)), total - length)
        stretch += [first, first + length]
    return tuple(stretch)


def picture(
    image: np.ndarray,
    box: Box,
    mask: np.ndarray | None = None,
    colour: str = BLUE,
    click: tuple[int, int] | None = None,
) -> np.ndarray:
    """A cut of ``image`` (H, W, 3) uint8 at about `SIDE` pixels, with a mask (H, W) bool and a click (x, y).

    The mask is tinted and outlined, the rest is paler; a mask does not hide what it covers.
    """
    top, bottom, left, right = box
    part = image[top:bottom, left:right]
    scale = SIDE / max(part.shape[:2])
    scale = max(1, round(scale)) if scale > 1 else scale
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    drawn = _scaled(part, size).astype(np.float32)
    if mask is not None:
        inside = _scaled(mask[top:bottom, left:right].astype(np.uint8), size) > 0
        tint = 255 * np.array(to_rgb(colour), np.float32)
        drawn = np.where(inside[..., None], 0.55 * drawn + 0.45 * tint, 0.6 * drawn + 0.4 * 255)
        outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        drawn = np.ascontiguousarray(drawn)
        cv2.drawContours(drawn, outlines, -1, (255, 255, 255), 4)  # blue on blue can be seen, too
        cv2.drawContours(drawn, outlines, -1, tint.tolist(), 2)
    drawn = np.ascontiguousarray(drawn.round().astype(np.uint8))
    if click is not None:
        place = (round((click[0] - left + 0.5) * scale), round((click[1] - top + 0.5) * scale))
        yellow = (255 * np.array(to_rgb(YELLOW))).tolist()
        cv2.circle(drawn, place, 8, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(drawn, place, 6, yellow, -1, cv2.LINE_AA)
    return drawn


def _scaled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Smaller by averaging, larger by repeating pixels; ``size`` is (width, height)."""
    shrinks = size[0] < values.shape[1]
    way = cv2.INTER_AREA if shrinks and values.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(values), size, interpolation=way)


def save_picture(drawn: np.ndarray, folder: Path, stem: str) -> str:
    """Write a picture below ``folder``; its name there. Few colours make a PNG, photographs a JPEG."""
    colours = len(np.unique(drawn.reshape(-1, 3), axis=0))
    suffix, options = (".png", {}) if colours < 4096 else (".jpg", {"quality": 85})
    name = f"{PICTURES}/{stem}{suffix}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn).save(folder / name, **options)
    return name


def example_kinds(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """The examples by kind, in their order."""
    kinds: dict[str, list[Example]] = {}
    for one in examples:
        kinds.setdefault(one.kind, []).append(one)
    return kinds
