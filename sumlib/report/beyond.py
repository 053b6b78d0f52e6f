"""What goes beyond the paper, beside SUM on the same data.

A second round of self-training, SUM with AugSeg's consistency, and both forms of the discrepancy.
"""

from collections.abc import Sequence
from itertools import product

import pandas as pd

from sumlib.report.intervals import Bootstrap, MissingRun
from sumlib.report.results import METRICS, TASKS
from sumlib.report.text import fixed, markdown_table

BEYOND = {
    ("SUM second round", "FT-Medium"): ("SUM", "FT-Medium"),
    ("SUM + AugSeg", "FT-Small"): ("SUM", "FT-Small"),
    ("SUM Discrepancy-Uncer (two decoders)", "FT-Small"): ("SUM", "FT-Small"),
    ("SUM Discrepancy-Uncer", "FT-Small"): ("SUM", "FT-Small"),
}
"""(model, train_set) -> what it is compared with."""


COLUMNS = [
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
]


def beyond_table(bootstrap: Bootstrap, rounds: Sequence[int] = (1, 3, 6)) -> pd.DataFrame:
    """Difference of each model of `BEYOND` to its SUM, in points, with 95 % intervals; what was not evaluated
    is left out.

    Columns: `COLUMNS`; "seeds" is the number of trainings, of the model with the fewest.
    """
    rows = []
    for (model, reference), number, metric, task in product(BEYOND.items(), rounds, METRICS, (*TASKS, "all")):
        models = {model: 1.0, reference: -1.0}
        try:
            change = bootstrap.compare(models, task, prompt="point", rounds=number, metric=metric)
        except MissingRun:
            continue
        place = (*model, " ".join(reference), number, metric, task)
        rows.append((*place, change.value, change.low, change.high, change.trainings))
    return pd.DataFrame(rows, columns=COLUMNS)


def beyond_markdown(table: pd.DataFrame) -> str:
    """`beyond_table`'s result for people: a row a model, metric and round."""
    parts = [
        "# Beyond the paper",
        "Points, difference to SUM on the same human masks, with its 95 % interval (paired bootstrap over "
        "test images). One "
        "training each: an interval does not tell how much another seed would change. **Bold**: the whole "
        "interval on one "
        "side of 0.",
    ]
    rows = []
    for (model, _, reference, metric, number), block in table.groupby(
        ["model", "train_set", "reference", "metric", "rounds"], sort=False
    ):
        by_task = block.set_index("task")
        cells = [_cell(by_task.loc[task]) if task in by_task.index else "–" for task in (*TASKS, "all")]
        rows.append([f"{model} − {reference}", metric, str(number), *cells])
    parts.append(markdown_table(["difference", "metric", "points", *TASKS, "all"], rows, text=(0, 1)))
    return "\n\n".join(parts) + "\n"


def _cell(row: pd.Series) -> str:
    value = fixed(row["difference"], sign=True)
    value = f"**{value}**" if row["low"] > 0 or row["high"] < 0 else value
    return f"{value} ({fixed(row['low'], sign=True)} … {fixed(row['high'], sign=True)})"
