"""The sections on how much of the tuning to keep and how many masks are needed."""

from pathlib import Path

import pandas as pd

from sumlib.pipeline.own.keep import enough
from sumlib.pipeline.own.report.document import Block, Picture, Section, Table, Text
from sumlib.pipeline.own.report.lead import honest_gain, said_interval
from sumlib.pipeline.own.report.results import Results
from sumlib.report.text import fixed


def keep_section(results: Results, plot: Path | None) -> Section | None:
    """The curve of shares, the rule and its honest estimate."""
    curve, keep = results.keep_curve, results.keep
    if curve is None or curve.empty:
        return None
    rounds = [column for column in curve if column.startswith("mIoU, ")]
    cells = [
        [
            f"{row['keep']:g}" + (" (SAM)" if row["keep"] == 0 else ""),
            *(fixed(row[column]) for column in rounds),
            said_interval(pd.Series({"value": row["gain"], "low": row["low"], "high": row["high"]}))
            if row["keep"]
            else "–",
            fixed(row["agreement"]),
            "chosen" if row["chosen"] else "" if row["allowed"] else "forgets too much",
        ]
        for _, row in curve.iterrows()
    ]
    header = ["share", *rounds, "gain (95 % interval)", "agreement", ""]
    chosen = [k for k, row in enumerate(curve.itertuples()) if row.chosen]
    blocks: list[Block] = [
        Text("Weights between SAM's and the tuned ones, SAM + share x (tuned - SAM). They cost no training."),
        Table(header, cells, text=(0, len(header) - 1), strong=chosen),
    ]
    if plot is not None:
        shade = " The shaded shares forget too much." if not curve["allowed"].all() else ""
        blocks.append(Picture(plot, "Held-out mIoU and agreement with SAM by the share kept", shade.strip()))
    if keep.get("rule"):
        blocks.append(Text(f"Rule: {keep['rule'][0].lower()}{keep['rule'][1:]}"))
    if (honest := honest_gain(results)) is not None:
        blocks.append(
            Text(
                "The share was chosen on the same masks that the report scores, which flatters it a little. "
                "Scored on each image with the share that the other images choose, the gain over SAM, mean "
                f"over the rounds, is {said_interval(pd.Series(honest))} points."
            )
        )
    return Section("How much of the tuning to keep", blocks)


def learning_section(results: Results, plot: Path | None) -> Section | None:
    """How many masks are needed."""
    curve = results.learning_curve
    if curve is None or curve.empty:
        return None
    own = curve[curve["metric"] == "mIoU"].set_index(["masks", "round"])
    rounds = sorted(curve["round"].unique())
    cells = []
    for count in sorted(curve["masks"].unique()):
        gain = own.loc[(count, rounds[0])]
        change = pd.Series({"value": gain["gain"], "low": gain["gain_low"], "high": gain["gain_high"]})
        said = said_interval(change) if count else "–"
        title = str(count) if count else "0 (SAM)"
        cells.append([title, *(fixed(own.loc[(count, number), "value"]) for number in rounds), said])
    header = ["masks", *(f"mIoU, {number}" for number in rounds), "gain at one point (95 % interval)"]
    blocks: list[Block] = [Table(header, cells)]
    if plot is not None:
        blocks.append(Picture(plot, "Held-out mIoU by the number of masks trained with", _band(own)))
    blocks += [Text(text)] if (text := enough(curve, rounds[0])) else []
    return Section("How many masks do you need?", blocks)


def _band(own: pd.DataFrame) -> str:
    return "Band: 95 % interval over images, at the fewest points." if own["low"].notna().any() else ""
