"""How much of the tuning to keep: weights between SAM's and the tuned ones, and how many masks are needed.

A model between SAM and the tuned one (WiSE-FT: Wortsman et al., CVPR 2022, arXiv 2109.01903) costs no
training, and often has most of what was learnt and most of what was known. `choose_keep` tries some shares
and chooses by a rule that is stated before any number is seen.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sumlib.base.progress import with_bar
from sumlib.data.dataset import Dataset
from sumlib.model.sum import Sum
from sumlib.pipeline.own.evaluation import FEW, ROUNDS, compared, evaluate_own, scores
from sumlib.pipeline.own.probe import FOUNDATION, Probe, ask, summary
from sumlib.report.intervals import share_interval

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the tuning that are tried; 0 is SAM, 1 the tuned model."""
TOLERANCE = 10.0
"""Points of agreement with SAM that may be lost, by default."""
TASKS = "task_prompt."
ADAPTER, OUTPUT = ".adapter.", ".adapter.up."


# ---- weights between two models -----------------------------------------------------------------


@torch.no_grad()
def interpolated(model: Sum, foundation: Sum, keep: float) -> Sum:
    """A new model with the weights SAM + ``keep`` x (tuned - SAM), for every parameter.

    The task prompt's vectors start from those of ``foundation``, zero in SAM. Adapters, which SAM has not,
    have their output scaled. ``keep`` 0 is ``foundation`` and 1 is ``model``, bit for bit. It lies on the
    device of ``model``. Raises ValueError if ``keep`` is not in [0, 1] or the models are of different
    architectures, naming the first weight that differs.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}; it is the share of the tuning that is kept, from 0 to 1")
    _require_alike(model, foundation)
    mixed, base = deepcopy(model), dict(foundation.named_parameters())
    for name, value in mixed.named_parameters():
        if name.startswith(TASKS):
            value.copy_(_between(_padded(base[name], value), value, keep))
        elif name in base:
            value.copy_(_between(base[name].to(value), value, keep))
        elif OUTPUT in name:
            value.mul_(keep)
    return mixed.eval()


def _between(start: Tensor, end: Tensor, keep: float) -> Tensor:
    """Exact at both ends, which ``start + keep * (end - start)`` is not."""
    if keep in (0, 1):
        return end if keep else start
    return start + keep * (end - start)


def _padded(vectors: Tensor, like: Tensor) -> Tensor:
    """Task vectors (T, C) with zeros for tasks that only ``like`` (T or more, C) has."""
    whole = torch.zeros_like(like)
    whole[: len(vectors)] = vectors.to(like)
    return whole


def _require_alike(model: Sum, foundation: Sum) -> None:
    """Raise ValueError unless the two differ in nothing but values, adapters and further tasks."""
    again = "interpolate between a model and the SAM that it was tuned from"
    if model.architecture != foundation.architecture:
        names = [one.architecture or "SAM's own" for one in (model, foundation)]
        raise ValueError(f"the architectures differ, {names[0]} and {names[1]}: {again}")
    ours, theirs = (dict(one.named_parameters()) for one in (model, foundation))
    extra = [name for name in ours.keys() - theirs.keys() if ADAPTER not in name]
    for name in sorted([*extra, *(theirs.keys() - ours.keys())]):
        hint = "; merge low-rank updates first" if any(".frozen." in one for one in extra) else ""
        raise ValueError(f"the architectures differ: only one model has the weight {name}{hint}: {again}")
    for name, value in theirs.items():
        own, other = tuple(ours[name].shape), tuple(value.shape)
        more_tasks = name.startswith(TASKS) and own[1:] == other[1:] and own[0] >= other[0]
        if own != other and not more_tasks:
            raise ValueError(f"the architectures differ: {name} is {own} and {other}: {again}")
    buffers = dict(foundation.named_buffers())
    for name, value in model.named_buffers():
        if name not in buffers or not torch.equal(value.cpu(), buffers[name].cpu()):
            raise ValueError(f"{name}, which is never trained, differs between the models: {again}")


# ---- which share --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A chosen share, and what it was chosen from."""

    keep: float
    rule: str
    """In words."""
    curve: pd.DataFrame
    """A row a share: keep, value (held-out mIoU in points, mean over the rounds), one column "mIoU, R" for
    each round, gain, low, high (against SAM, paired), agreement, agreement_low, agreement_high (with SAM, in
    points), lost (points of agreement), allowed, chosen."""
    held_out: pd.DataFrame
    """Per-mask rows of `evaluate_own`, with the column keep."""
    honest: dict[str, float]
    """value, low, high: gain against SAM in points if each image is scored with the share that the *other*
    images choose. Free of the optimism of choosing and reporting on one set."""

    @property
    def figure(self):
        """Both curves over the share."""
        from sumlib.pipeline.own.report.figures import keep_figure

        return keep_figure(self.curve)


def choose_keep(
    model: Sum,
    foundation: Sum,
    held_out: Dataset,
    probe: Probe,
    *,
    grid: Sequence[float] = GRID,
    tolerance: float = TOLERANCE,
    rounds: Sequence[int] = ROUNDS,
    progress: bool = True,
) -> Choice:
    """Try the shares of ``grid`` (0 is always among them) on held-out masks and on the forgetting probe.

    The rule: of the shares whose agreement with SAM on the probe is at most ``tolerance`` points below SAM's
    own, the one with the highest mIoU on the held-out masks, mean over ``rounds``; of those that are equal to
    a tenth of a point, the smallest. SAM itself always fulfils the condition.
    """
    shares = sorted({0.0, *(float(share) for share in grid)})
    tables, answers = [], []
    for share in with_bar(shares, "shares of the tuning", progress):
        mixed = interpolated(model, foundation, share)
        table = evaluate_own({_title(share): mixed}, held_out, rounds=rounds, progress=False)
        tables.append(table.assign(keep=share))
        answers.append(ask(mixed, probe, name=_title(share), progress=False))
    scored, answered = pd.concat(tables, ignore_index=True), pd.concat(answers, ignore_index=True)
    curve = pd.DataFrame([_point(scored, answered, share, probe) for share in shares])
    curve["lost"] = curve["agreement"].iloc[0] - curve["agreement"]
    curve["allowed"] = curve["lost"] <= tolerance
    allowed = curve.loc[curve["allowed"], "keep"].tolist()
    keep = _best(_by_image(scored), allowed)
    curve["chosen"] = curve["keep"] == keep
    rule = (
        f"Of the shares that lose at most {tolerance:g} points of agreement with SAM, the one with the "
        f"highest mIoU on the held-out masks (mean over {', '.join(map(str, rounds))} points); of equals "
        "the smallest."
    )
    return Choice(keep, rule, curve, scored, _honest(scored, allowed))


def _title(share: float) -> str:
    return FOUNDATION if share == 0 else f"keep {share:g}"


def _point(scored: pd.DataFrame, answered: pd.DataFrame, share: float, probe: Probe) -> dict:
    """The row of one share in `Choice.curve`."""
    own = scored[scored["keep"] == share]
    means = 100 * own.astype({"iou": float}).groupby("round")["iou"].mean()
    gain = _gain(own, scored[scored["keep"] == 0])
    agreed = summary(answered, _title(share))
    first = agreed[(agreed["by"] == "all") & (agreed["prompt"] == probe.extent.prompts[0])].iloc[0]
    return {
        "keep": share,
        "value": means.mean(),
        **{f"mIoU, {number}": value for number, value in means.items()},
        **dict(zip(("gain", "low", "high"), gain)),
        **dict(zip(("agreement", "agreement_low", "agreement_high"), first[["iou", "low", "high"]])),
    }


def _gain(own: pd.DataFrame, sam: pd.DataFrame) -> tuple[float, float, float]:
    """Points against SAM, mean over rounds and masks, with its interval (NaN for few images)."""
    keys = ["image", "mask", "round"]
    pairs = own.merge(sam[[*keys, "iou"]], on=keys, suffixes=("", "_sam"), validate="one_to_one")
    change = 100 * (pairs["iou"].astype(float) - pairs["iou_sam"])
    value, low, high = share_interval(change, pairs["photo"], np.random.default_rng(0))
    return (value, low, high) if pairs["photo"].nunique() >= FEW else (value, np.nan, np.nan)


def _by_image(scored: pd.DataFrame) -> pd.DataFrame:
    """Sum of IoU and number of values: rows (keep, photo)."""
    return scored.astype({"iou": float}).groupby(["keep", "photo"])["iou"].agg(["sum", "size"])


def _best(sums: pd.DataFrame, allowed: Sequence[float]) -> float:
    """The share that the rule chooses, from `_by_image`."""
    total = sums.groupby("keep").sum().loc[list(allowed)]
    value = (100 * total["sum"] / total["size"]).round(1)
    return float(value.index[value.argmax()])  # the first of equals, and shares ascend


def _honest(scored: pd.DataFrame, allowed: Sequence[float]) -> dict[str, float]:
    """`Choice.honest`; without an interval for few images, without anything for a single one."""
    sums = _by_image(scored)
    photos = sums.index.unique("photo")
    if len(photos) < 2:
        return dict.fromkeys(("value", "low", "high"), np.nan)
    others = {photo: _best(sums.drop(photo, level="photo"), allowed) for photo in photos}
    own = scored[scored["keep"] == scored["photo"].map(others)]
    return dict(zip(("value", "low", "high"), _gain(own, scored[scored["keep"] == 0])))


# ---- how many masks -----------------------------------------------------------------------------


def learning_curve(
    train: Callable[[int], Sum],
    counts: Sequence[int],
    held_out: Dataset,
    foundation: Sum,
    *,
    rounds: Sequence[int] = ROUNDS,
    progress: bool = True,
) -> pd.DataFrame:
    """Held-out scores of models that were trained with ``counts`` masks, by ``train(count)``; 0 is SAM.

    Columns: masks, round, metric, value, low, high (points and 95 % interval over images), gain, gain_low,
    gain_high (paired, against SAM).
    """
    table = evaluate_own({FOUNDATION: foundation}, held_out, rounds=rounds, progress=False)
    rows = [_with_gain(0, table, table)]
    for count in with_bar(sorted(set(counts)), "learning curve", progress):
        name = f"{count} masks"
        own = evaluate_own({name: train(count)}, held_out, rounds=rounds, progress=False)
        rows.append(_with_gain(count, own, table))
    return pd.concat(rows, ignore_index=True)


def _with_gain(count: int, own: pd.DataFrame, sam: pd.DataFrame) -> pd.DataFrame:
    value = scores(own).assign(masks=count)[["masks", "round", "metric", "value", "low", "high"]]
    if not count:
        return value.assign(gain=0.0, gain_low=0.0, gain_high=0.0)
    gain = compared(pd.concat([own, sam]), own["model"].iloc[0], FOUNDATION)
    gain = gain.rename(columns={"value": "gain", "low": "gain_low", "high": "gain_high"})
    return value.merge(gain[["round", "metric", "gain", "gain_low", "gain_high"]], on=["round", "metric"])


def enough(curve: pd.DataFrame, number: int = 1, metric: str = "mIoU") -> str:
    """What the last step of a learning curve says, in a sentence."""
    own = curve[(curve["round"] == number) & (curve["metric"] == metric)].sort_values("masks")
    if len(own) < 3:
        return ""
    before, last = own.iloc[-2], own.iloc[-1]
    step = last["value"] - before["value"]
    said = f"From {before['masks']:.0f} to {last['masks']:.0f} masks the score changes by {step:+.1f} points"
    help = "more masks are likely to help" if step >= 1 else "more masks of the same kind may not help much"
    return f"{said}: {help}. Each number is one training, and trainings differ by chance, too."
