"""Table 19 and Figure 22: SAM and SUM on the additional test sets, over nine rounds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sumlib.base.files import write_text
from sumlib.report.intervals import Bootstrap
from sumlib.report.results import METRICS
from sumlib.report.tables import paper_tables
from sumlib.report.text import fixed, interval_text, markdown_table, write_csv

ROUNDS = (1, 3, 5, 9)
"""Of Table 19."""
SAM, SUM = ("SAM", "none"), ("SUM", "FT-Medium")


def additional_means(results: pd.DataFrame) -> pd.DataFrame:
    """Mean scores over masks, then over seeds, in points: iou, biou by model, setting, round and dataset (the
    index)."""
    means = (
        results.astype({"iou": float, "biou": float})
        .groupby(["model", "setting", "round", "dataset", "seed"])[["iou", "biou"]]
        .mean()
        .groupby(["model", "setting", "round", "dataset"])
        .mean()
    )
    return 100 * means


def additional_table(
    results: pd.DataFrame, names: Sequence[str], generator: np.random.Generator
) -> pd.DataFrame:
    """Table 19: SAM and SUM (FT-Medium, the mean of its seeds) on the data sets ``names`` and their mean,
    best of three.

    ``results``: per-mask rows as `sumlib.evaluate.evaluate_run` gives them. Columns: rounds, dataset (or
    "mean"), paper_sam, paper_sum (NaN where the paper gives none), and for each metric sam_, sum_,
    difference_, low_, high_ (points, 95 %).
    """
    paper = paper_tables().query("table == '19'").set_index(["dataset", "rounds", "model"])["value"]
    bootstrap, means = Bootstrap(results, generator), additional_means(results)
    rows = []
    for number in (n for n in ROUNDS if n <= results["round"].max()):
        for name in (*names, "mean"):
            sets = list(names) if name == "mean" else [name]
            known = [
                np.mean([paper.get((one, number, model), np.nan) for one in sets]) for model in ("SAM", "SUM")
            ]
            row = {"rounds": number, "dataset": name, "paper_sam": known[0], "paper_sum": known[1]}
            for metric, key in METRICS.items():
                row |= _difference(bootstrap, means, sets, number, metric, key)
            rows.append(row)
    return pd.DataFrame(rows)


def _difference(bootstrap, means, sets: list[str], number: int, metric: str, key: str) -> dict[str, float]:
    sam, tuned = (means.loc[(model, "oracle", number)].loc[sets, key].mean() for model in ("SAM", "SUM"))
    where = dict.fromkeys(sets, 1 / len(sets))
    change = bootstrap.compare({SUM: 1.0, SAM: -1.0}, where, prompt="point", rounds=number, metric=metric)
    row = {"sam": sam, "sum": tuned, "difference": change.value, "low": change.low, "high": change.high}
    return {f"{name}_{metric}": value for name, value in row.items()}


def _change(row: pd.Series, metric: str) -> str:
    return interval_text(*(row[f"{name}_{metric}"] for name in ("difference", "low", "high")))


def additional_rows(table: pd.DataFrame) -> str:
    """`additional_table`'s result as a Markdown table."""
    cells = []
    for _, row in table.iterrows():
        cells.append([str(row["rounds"]), row["dataset"], fixed(row["paper_sam"]), fixed(row["paper_sum"])])
        cells[-1].append(fixed(row["paper_sum"] - row["paper_sam"], sign=True))
        for metric in METRICS:
            cells[-1] += [fixed(row[f"sam_{metric}"]), fixed(row[f"sum_{metric}"]), _change(row, metric)]
    header = ["points", "data set", "paper mIoU, SAM", "SUM", "difference"]
    for metric in METRICS:
        header += [f"ours {metric}, SAM", "SUM", "difference (95 %)"]
    return markdown_table(header, cells, text=(1,))


def write_additional(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `table-19.csv` and `table-19.md` into ``folder``; give the paths."""
    path = Path(folder) / "table-19.md"
    text = (
        "# Table 19. Eight additional test sets\n\nPoints; SUM at FT-Medium, the mean of three seeds. "
        "*Paper*: ViT-H and the "
        "real sets; *ours*: the micro model on micro sets, micro-Cityscapes and so on, in the layouts of "
        "the real ones. "
        f"Compare the differences.\n\n{additional_rows(table)}\n"
    )
    write_text(path, text)
    return [write_csv(table, Path(folder) / "table-19.csv"), path]


def additional_says(table: pd.DataFrame) -> str:
    """The main numbers of `additional_table` as a Markdown list."""
    lines = []
    for _, row in table[table["dataset"] == "mean"].iterrows():
        points = f"{row['rounds']} point{'s' if row['rounds'] > 1 else ''}"
        paper = fixed(row["paper_sum"] - row["paper_sam"], sign=True)
        lines.append(
            f"- At {points} SUM is {_change(row, 'mIoU')} mIoU and {_change(row, 'mBIoU')} mBIoU from SAM, "
            "the mean over "
            f"the eight sets (paper: {paper} mIoU)."
        )
    cells = table[table["dataset"] != "mean"]
    above, below = int((cells["low_mIoU"] > 0).sum()), int((cells["high_mIoU"] < 0).sum())
    lines.append(
        f"- Of the {len(cells)} cells (set and number of points) SUM is above SAM in mIoU in {above}, below "
        f"in {below}, "
        "beyond the 95 % interval."
    )
    return "\n".join(lines)
