"""The forgetting probe: how well a tuned model still agrees with SAM where SAM was sure.

SAM's confident automatic masks of images without human masks are prompted again, at the point that produced
them or by their box, in the tuned model and in SAM itself. SAM gives its own mask of a point again, so its
agreement is 100 %; by box, or after further clicks, it differs a little from itself, which is why SAM is
always measured beside the model. What the model loses against SAM is what it forgot, or what it has learnt
to draw in another way: the probe cannot tell which, and has no truth. Held-out human masks have.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sumlib.base.masks import rle_decode, rle_encode
from sumlib.base.progress import with_bar
from sumlib.config.params import PseudoLabelConfig
from sumlib.data.dataset import Dataset, Sample
from sumlib.data.images import BadSampleError
from sumlib.metrics import boundary_iou
from sumlib.model.prompts import Prompts
from sumlib.model.rounds import Round, best_of, interactive_rounds
from sumlib.model.sum import Sum
from sumlib.pseudo.automatic import AutomaticMasks
from sumlib.pseudo.store import PseudoLabels
from sumlib.report.intervals import share_interval
from sumlib.sampler import next_click

FOUNDATION, TUNED = "SAM", "SUM"
"""Names of the two models in the tables, where no others are given."""
SIZES = {"small": 32**2 / (640 * 480), "medium": 96**2 / (640 * 480), "large": np.inf}
"""Shares of the image below which a mask is small, medium or large: COCO's, in its images of 640 x 480."""
INSIDE, SMALLER = 0.9, 0.8
"""A mask is a part if this share of it lies inside another mask, and its area is below that share of it."""
LOST = 0.5
"""A mask is lost where the model's answer overlaps it less than this."""
PROMPTS = ("point", "box")
_NESTING_SIDE = 256  # masks are compared with each other at this size, in pixels of the longest side
_CHUNK_PIXELS = 2**25  # masks are decoded together up to this many pixels
KEYS = ["image", "mask", "prompt", "round"]


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
    prompts: tuple[str, ...] = PROMPTS
    rounds: tuple[int, ...] = (1,)
    skipped: tuple[str, ...] = field(default=())
    """Images that could not be read, or in which SAM is sure of nothing."""

    @property
    def masks(self) -> int:
        return sum(len(item.rles) for item in self.items)


def forgetting_probe(
    model: Sum,
    foundation: Sum,
    images: Dataset,
    config: PseudoLabelConfig,
    *,
    name: str = TUNED,
    task: int = 0,
    progress: bool = True,
    **options,
) -> pd.DataFrame:
    """Agreement of ``model`` and of ``foundation`` (SAM) with SAM's confident masks of ``images``.

    ``config`` has the grid of points and the thresholds above which SAM's mask is confident; ``options`` are
    those of `make_probe`. Returns a row for each model, mask, prompt and round: model, image, mask, prompt,
    round, iou, biou, area, size, level, predicted_iou, stability, trained.
    """
    probe = make_probe(foundation, images, config, progress=progress, **options)
    asked = [(FOUNDATION, foundation, 0), (name, model, task)]
    return pd.concat(
        [ask(one, probe, name=title, task=given, progress=progress) for title, one, given in asked],
        ignore_index=True,
    )


# ---- what is asked ------------------------------------------------------------------------------


def make_probe(
    foundation: Sum,
    images: Dataset,
    config: PseudoLabelConfig,
    *,
    labels: PseudoLabels | None = None,
    trained: Collection[str] = (),
    limit_images: int = 50,
    limit_masks: int = 20,
    prompts: Sequence[str] = PROMPTS,
    rounds: Sequence[int] = (1,),
    progress: bool = True,
) -> Probe:
    """Choose images and SAM's confident masks in them; the same ones on every call.

    Images outside ``trained`` (names) come first; of each group they lie evenly over the data set. Of an
    image's masks up to ``limit_masks`` are taken, evenly over their order by area. ``labels`` are SAM's masks
    that were stored for some images, so that they need not be made again; they are held to the same
    thresholds. Raises ValueError where SAM is sure of no mask, or a prompt or round is unknown.
    """
    if unknown := [prompt for prompt in prompts if prompt not in PROMPTS]:
        raise ValueError(f"no prompt {unknown[0]!r} in the probe; known are {', '.join(PROMPTS)}")
    if not rounds or min(rounds) < 1:
        raise ValueError(f"rounds are {tuple(rounds)}; they are counted from 1")
    foundation.eval()
    stored = frozenset(labels.images) if labels is not None else frozenset()
    items: list[ProbeImage] = []
    skipped: list[str] = []
    # An image that is of no use makes room for the next one, and the number of tries is bounded.
    order = _order(images.names, frozenset(trained), limit_images)[: 2 * limit_images]
    for index in with_bar(order, "SAM's own masks", progress):
        if len(items) == limit_images:
            break
        name = images.names[index]
        try:
            found = (
                _stored(labels, name, config) if name in stored else _made(foundation, images[index], config)
            )
        except BadSampleError:
            found = None
        if found is None or not len(found[0]):
            skipped.append(name)
        else:
            items.append(_item(index, name, name in trained, *found, limit_masks))
    if not items:
        raise ValueError(
            f"{images.name}: SAM is sure of no mask in {len(skipped)} images: lower pred_iou_thresh or "
            "stability_thresh, or give other images"
        )
    return Probe(images, tuple(items), tuple(prompts), tuple(sorted(set(rounds))), tuple(skipped))


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
def _made(foundation: Sum, sample: Sample, config: PseudoLabelConfig) -> Found | None:
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


def _item(
    index: int,
    name: str,
    trained: bool,
    masks: np.ndarray,
    points: np.ndarray,
    boxes: np.ndarray,
    predicted: np.ndarray,
    stability: np.ndarray,
    limit: int,
) -> ProbeImage:
    """The probe's masks of one image, from all of its confident ones."""
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


# ---- the answers --------------------------------------------------------------------------------


def ask(model: Sum, probe: Probe, *, name: str = TUNED, task: int = 0, progress: bool = True) -> pd.DataFrame:
    """The answers of one model, as rows of `forgetting_probe`; ``task`` is told in the first round.

    0 is what unlabeled images are trained with. Of the outputs of the first point the best one counts, as in
    the oracle setting of the evaluation; a box and later rounds have one output.
    """
    model.eval()
    rows = []
    for item in with_bar(probe.items, f"probe {name}", progress):
        sample = probe.images[item.index]
        if sample.image.shape[:2] != tuple(item.rles[0]["size"]):
            raise ValueError(
                f"image {item.name!r} has changed its size since the probe was made: make it again"
            )
        with torch.no_grad():
            embedding = model.encode(model.preprocess(sample.image)[None])
        chunk = max(1, _CHUNK_PIXELS // (sample.image.shape[0] * sample.image.shape[1]))
        for start in range(0, len(item.rles), chunk):
            part = range(start, min(start + chunk, len(item.rles)))
            rows += [
                _rows(item, part, prompt, number, scores)
                for prompt in probe.prompts
                for number, *scores in _answers(model, embedding, item, part, prompt, probe.rounds, task)
            ]
    table = pd.concat(rows, ignore_index=True)
    table.insert(0, "model", name)
    return table.sort_values(KEYS, kind="stable", ignore_index=True)


@torch.no_grad()
def _answers(
    model: Sum,
    embedding: Tensor,
    item: ProbeImage,
    part: range,
    prompt: str,
    rounds: tuple[int, ...],
    task: int,
) -> list[tuple[int, Tensor, Tensor]]:
    """(round from 1 on, IoU (N,), boundary IoU (N,)) of some masks of an image, for the wanted rounds."""
    device, n = embedding.device, len(part)
    target = torch.from_numpy(np.stack([rle_decode(item.rles[k]) for k in part])).to(device)
    size = tuple(target.shape[1:])
    frame = lambda xy: model.to_input_frame(torch.from_numpy(xy[part.start : part.stop]).to(device), size)
    first = (
        Prompts.from_points(frame(item.points)[:, None])
        if prompt == "point"
        else Prompts.from_boxes(frame(item.boxes))
    )
    tasks, rows = torch.full((n,), task, device=device), torch.arange(n, device=device)

    def decode(prompts: Prompts, shown: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
        return model.decode_codes(
            embedding.expand(n, -1, -1, -1),
            prompts.xy,
            prompts.codes,
            mask_inputs=shown,
            tasks=tasks if number == 0 else None,
        )

    def next_prompts(turn: Round) -> Prompts:
        click, label = next_click(target, turn.mask)
        return turn.prompts.add(model.to_input_frame(click.float(), size), label)

    found = []
    several = prompt == "point"
    for turn in interactive_rounds(decode, first, max(rounds), next_prompts, several=several):
        masks = model.upscale(turn.logits, size) > model.sam.mask_threshold  # (N, K, H, W)
        best, iou = best_of(masks, target)
        turn.take(best, masks[rows, best])
        if turn.number + 1 in rounds:
            found.append((turn.number + 1, iou[rows, best], boundary_iou(turn.mask, target)))
    return found


def _rows(item: ProbeImage, part: range, prompt: str, number: int, scores: Sequence[Tensor]) -> pd.DataFrame:
    about = item.about.iloc[part.start : part.stop].reset_index(drop=True)
    first = pd.DataFrame({"image": item.name, "mask": list(part), "prompt": prompt, "round": number})
    iou, biou = (score.float().cpu().numpy() for score in scores)
    return first.assign(iou=iou, biou=biou).join(about).assign(trained=item.trained)


# ---- what they say ------------------------------------------------------------------------------


def summary(table: pd.DataFrame, model: str = TUNED, foundation: str = FOUNDATION) -> pd.DataFrame:
    """Agreement in points with 95 % intervals by bootstrap over images, overall, by size and by level.

    A row for each prompt, round and group that holds a mask: prompt, round, by ("all", "size", "level"),
    group, masks, images, sam (mean IoU of SAM with itself), iou, low, high (of ``model``), change,
    change_low, change_high (paired, model minus SAM), biou, sam_biou, and lost (share of masks in points
    whose IoU is below `LOST`).
    """
    groups = [("all", "all"), *(("size", size) for size in SIZES), ("level", "whole"), ("level", "part")]
    pairs = _paired(table, model, foundation)
    rows = []
    for (prompt, number), turn in pairs.groupby(["prompt", "round"], sort=False):
        for by, group in groups:
            part = turn if by == "all" else turn[turn[by] == group]
            if len(part):
                rows.append({"prompt": prompt, "round": number, "by": by, "group": group} | _agreement(part))
    return pd.DataFrame(rows)


def _paired(table: pd.DataFrame, model: str, foundation: str) -> pd.DataFrame:
    """The model's rows with SAM's scores beside them. Raises ValueError if one of the two is not there."""
    names = table["model"].unique()
    if missing := [one for one in (model, foundation) if one not in names]:
        raise ValueError(f"the probe has no answers of {missing[0]}; it has those of {', '.join(names)}")
    own = table[table["model"] == model]
    sam = table.loc[table["model"] == foundation, [*KEYS, "iou", "biou"]]
    pairs = own.merge(sam, on=KEYS, suffixes=("", "_sam"), validate="one_to_one")
    if len(pairs) != len(own):
        raise ValueError(f"{model} and {foundation} were asked for other masks: ask both with one probe")
    order = {prompt: number for number, prompt in enumerate(PROMPTS)}
    return pairs.sort_values(["prompt", "round"], key=lambda c: c.map(order) if c.name == "prompt" else c)


def _agreement(part: pd.DataFrame) -> dict:
    value = lambda column: 100 * part[column].astype(float)
    draw = lambda: np.random.default_rng(0)  # the same images are drawn for both
    iou = share_interval(value("iou"), part["image"], draw())
    change = share_interval(value("iou") - value("iou_sam"), part["image"], draw())
    return {
        "masks": len(part),
        "images": part["image"].nunique(),
        "sam": value("iou_sam").mean(),
        **dict(zip(("iou", "low", "high"), iou)),
        **dict(zip(("change", "change_low", "change_high"), change)),
        "biou": value("biou").mean(),
        "sam_biou": value("biou_sam").mean(),
        "lost": 100 * float((part["iou"] < LOST).mean()),
    }
