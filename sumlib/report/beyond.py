"""What goes beyond the paper: a second round of self-training, SUM with AugSeg's consistency, and both forms of the discrepancy, beside SUM on the same data."""

from collections.abc import Sequence

import pandas as pd

from sumlib.report.intervals import Bootstrap, MissingRun
from sumlib.report.results import TASKS, fixed, markdown_table

BEYOND = {
    ("SUM second round", "FT-Medium"): ("SUM", "FT-Medium"),
    ("SUM + AugSeg", "FT-Small"): ("SUM", "FT-Small"),
    ("SUM Discrepancy-Uncer (two decoders)", "FT-Small"): ("SUM", "FT-Small"),
    ("SUM Discrepancy-Uncer", "FT-Small"): ("SUM", "FT-Small"),
}
"""(model, train_set) -> what it is compared with."""


def beyond_table(bootstrap: Bootstrap, rounds: Sequence[int] = (1, 3, 6)) -> pd.DataFrame:
    """Difference of each model of `BEYOND` to its SUM: model, train_set, reference, rounds, metric, task, difference, low, high (95 %, points), seeds.

    What was not evaluated is left out.
    """
    rows = []
    for model, reference in BEYOND.items():
        for number in rounds:
            for metric in ("mIoU", "mBIoU"):
                for task in (*TASKS, "all"):
                    try:
                        found = bootstrap.compare(
                            {model: 1.0, reference: -1.0}, task, prompt="point", rounds=number, metric=metric
                        )
                    except MissingRun:
                        continue
                    rows.append(
                        {
                            "model": model[0],
                            "train_set": model[1],
                            "reference": " ".join(reference),
                            "rounds": number,
                            "metric": metric,
                            "task": task,
                            "difference": found.value,
                            "low": found.low,
                            "high": found.high,
                            "seeds": max(1, len(found.seeds)),
                        }
                    )
    return pd.DataFrame(
        rows,
        columns=[
            "model",
            "train_set",
            "reference",
            "rounds",
            "metric",
            "task",
            "difference",
            "low",
            "high",
            "seeds",
        ],
    )


def beyond_markdown(table: pd.DataFrame) -> str:
    """`beyond_table`'s result for people: a row a model, metric and round."""
    parts = [
        "# Beyond the paper",
        "Points, difference to SUM on the same human masks, with its 95 % interval (paired bootstrap over test images). One training each: "
        "an interval does not tell how much another seed would change. **Bold**: the whole interval on one side of 0.",
    ]
    rows = []
    for (model, train_set, reference, metric, number), block in table.groupby(
        ["model", "train_set", "reference", "metric", "rounds"], sort=False
    ):
        by = block.set_index("task")
        rows.append(
            [
                f"{model} − {reference}",
                metric,
                str(number),
                *(_cell(by.loc[task]) if task in by.index else "–" for task in (*TASKS, "all")),
            ]
        )
    parts.append(markdown_table(["difference", "metric", "points", *TASKS, "all"], rows, text=(0, 1)))
    return "\n\n".join(parts) + "\n"


def _cell(row: pd.Series) -> str:
    value = fixed(row["difference"], sign=True)
    value = f"**{value}**" if row["low"] > 0 or row["high"] < 0 else value
    return f"{value} ({fixed(row['low'], sign=True)} … {fixed(row['high'], sign=True)})"
