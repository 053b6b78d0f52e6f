"""The first sentences of a report: did it get better, and what did it forget?"""

from dataclasses import dataclass

import pandas as pd

from sumlib.pipeline.own.evaluation import FEW, compared
from sumlib.pipeline.own.probe import FOUNDATION, LOST, TUNED, summary
from sumlib.pipeline.own.report.results import Results
from sumlib.report.text import fixed, interval_text

NOTHING, BETTER, WORSE, TOO_FEW = "nothing", "better", "worse", "too few"


@dataclass(frozen=True)
class Verdict:
    """What a paired difference shows."""

    kind: str
    value: float
    low: float
    high: float
    images: int

    @property
    def numbers(self) -> str:
        """The difference with its interval."""
        return f"{fixed(self.value, sign=True)} points{between(self.low, self.high, sign=True)}"


def verdict(row: pd.Series) -> Verdict:
    """Of a row with value, low, high and images, as `evaluation.compared` gives it."""
    if row["images"] < FEW or pd.isna(row["low"]):
        kind = TOO_FEW
    else:
        kind = BETTER if row["low"] > 0 else WORSE if row["high"] < 0 else NOTHING
    return Verdict(kind, row["value"], row["low"], row["high"], int(row["images"]))


def between(low: float, high: float, sign: bool = False) -> str:
    """An interval in brackets, nothing where there is none.

    >>> between(-1, 2.04, sign=True), between(float("nan"), 1)
    (' (95 % interval -1.0 to +2.0)', '')
    """
    if pd.isna(low) or pd.isna(high):
        return ""
    return f" (95 % interval {fixed(low, sign=sign)} to {fixed(high, sign=sign)})"


def said_interval(row: pd.Series) -> str:
    """A paired difference with its interval, or alone where there is none."""
    if pd.isna(row["low"]):
        return fixed(row["value"], sign=True)
    return interval_text(row["value"], row["low"], row["high"])


def headline(results: Results) -> list[str]:
    """Two or three sentences in plain words; [] where nothing was measured."""
    said = [_held_out(results), _forgotten(results), _kept(results)]
    return [sentence for sentence in said if sentence]


def _held_out(results: Results) -> str:
    rows = held_out_change(results)
    if rows is None:
        return ""
    row = rows[(rows["round"] == rows["round"].min()) & (rows["metric"] == "mIoU")].iloc[0]
    one, said = verdict(row), f"one point ({row['masks']} masks)"
    images = "On 1 held-out image" if one.images == 1 else f"On {one.images} held-out images"
    honest = honest_gain(results)
    if one.kind == BETTER and honest is not None and not honest["low"] > 0:
        return (
            f"**Nothing is shown.** {images} {TUNED} gains {one.numbers} of mIoU over SAM at {said}, but the "
            "share of the tuning was chosen on these images. Scored on each with what the others choose, the "
            f"gain is {fixed(honest['value'], sign=True)}"
            f"{between(honest['low'], honest['high'], sign=True)}, which may be chance."
        )
    match one.kind:
        case "better":
            return f"**It got better.** {images} {TUNED} gains {one.numbers} of mIoU over SAM at {said}."
        case "worse":
            return f"**It got worse.** {images} {TUNED} loses against SAM: {one.numbers} of mIoU at {said}."
        case "nothing":
            return (
                f"**Nothing is shown.** {images} the change of mIoU at {said} is {one.numbers}: "
                "it may be chance, since the interval holds zero."
            )
    return (
        f"**Nothing is shown.** {images} the change of mIoU at {said} is {one.numbers}, but fewer than "
        f"{FEW} images say too little about others: hold out more."
    )


def honest_gain(results: Results) -> dict[str, float] | None:
    """`Choice.honest` if the share was chosen on the held-out masks and lies above 0, else None."""
    keep, honest = results.keep, results.keep.get("honest") or {}
    if not keep.get("chosen", True) or not keep.get("keep") or honest.get("value") is None:
        return None
    found = {key: float("nan") if one is None else float(one) for key, one in honest.items()}
    return None if pd.isna(found["value"]) else found


def held_out_change(results: Results) -> pd.DataFrame | None:
    """SUM minus SAM on the held-out masks, or None if one of them was not evaluated."""
    table = results.held_out
    if table is None or not {FOUNDATION, TUNED} <= set(table["model"]):
        return None
    return compared(table, TUNED, FOUNDATION)


def first_agreement(results: Results, model: str = TUNED) -> pd.DataFrame | None:
    """Rows of `probe.summary` of the first prompt and round, by group; None if the model was not asked."""
    table = results.probe
    if table is None or not {FOUNDATION, model} <= set(table["model"]):
        return None
    rows = summary(table, model)
    first = rows.iloc[0]
    return rows[(rows["prompt"] == first["prompt"]) & (rows["round"] == first["round"])]


def _forgotten(results: Results) -> str:
    rows = first_agreement(results)
    if rows is None:
        return ""
    row = rows[rows["by"] == "all"].iloc[0]
    lost = "none" if row["lost"] == 0 else f"{fixed(row['lost'])} %"
    return (
        f"**What it forgot.** Asked again for {row['masks']} masks that SAM was sure of, on {row['images']} "
        f"images without human masks, {TUNED} agrees with SAM to {fixed(row['iou'])} %"
        f"{between(row['low'], row['high'])}; SAM with itself to {fixed(row['sam'])} %. "
        f"Of these masks {lost} {'are' if lost == 'none' or row['lost'] != 1 else 'is'} lost "
        f"(overlap below {100 * LOST:.0f} %)."
    )


def _kept(results: Results) -> str:
    keep = results.keep.get("keep")
    if keep is None:
        return ""
    if keep == 0:
        return (
            "**Keep SAM as it is.** No share of the tuning was worth what it forgot: the weights are SAM's."
        )
    if keep == 1:
        return ""
    how = "chosen by the rule below" if results.keep.get("chosen", True) else "as the project says"
    return f"The weights are a mixture: {100 * keep:.0f} % of the tuning is kept, {how}."
