"""The forgetting probe: how well a tuned model still agrees with SAM where SAM was sure.

SAM's confident automatic masks of images without human masks are prompted again, at the point that produced
them or by their box, in the tuned model and in SAM itself. SAM gives its own mask of a point again, so its
agreement is 100 %; by box, or after further clicks, it differs a little from itself, which is why SAM is
always measured beside the model. What the model loses against SAM is what it forgot, or what it has learnt
to draw in another way: the probe cannot tell which, and has no truth. Held-out human masks have.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sumlib.base.masks import rle_decode
from sumlib.base.progress import with_bar
from sumlib.config.params import PseudoLabelConfig
from sumlib.data.dataset import Dataset
from sumlib.metrics import boundary_iou
from sumlib.model.prompts import Prompts
from sumlib.model.rounds import Round, best_of, interactive_rounds
from sumlib.model.sum import Sum
from sumlib.pipeline.own.probe.masks import PROMPTS, SIZES, Probe, ProbeImage, make_probe
from sumlib.report.intervals import share_interval
from sumlib.sampler import next_click

FOUNDATION, TUNED = "SAM", "SUM"
"""Names of the two models in the tables, where no others are given."""
LOST = 0.5
"""A mask is lost where the model's answer overlaps it less than this."""
_CHUNK_PIXELS = 2**25  # masks are decoded together up to this many pixels
KEYS = ["image", "mask", "prompt", "round"]


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
                for prompt in probe.extent.prompts
                for number, *scores in _answers(
                    model, embedding, item, part, prompt, probe.extent.rounds, task
                )
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
    first = _first_prompts(model, item, part, prompt, size)
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


def _first_prompts(model: Sum, item: ProbeImage, part: range, prompt: str, size: tuple[int, int]) -> Prompts:
    """Points or boxes of some masks of an image of ``size`` (H, W), in the model's frame."""
    device = model.sam.device
    frame = lambda xy: model.to_input_frame(torch.from_numpy(xy[part.start : part.stop]).to(device), size)
    if prompt == "point":
        return Prompts.from_points(frame(item.points)[:, None])
    return Prompts.from_boxes(frame(item.boxes))


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
