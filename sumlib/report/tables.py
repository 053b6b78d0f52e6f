"""The paper's tables with ours beside them: Tables 1, 2 and 4-18 (3 and 19 have modules of their own)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sumlib.base.files import write_text
from sumlib.report.results import TASKS, over_seeds
from sumlib.report.text import fixed, markdown_table, write_csv


@dataclass(frozen=True)
class Table:
    """How a table of the paper is shown: its caption and the model that differences are taken to, one for all
    or for each."""

    caption: str
    reference: str | Mapping[str, str]
    setting: str = "oracle"

    def reference_of(self, model: str) -> str | None:
        """The model that ``model`` is compared with; None if it is compared with none."""
        other = self.reference if isinstance(self.reference, str) else self.reference.get(model)
        return None if other == model else other


TABLES = {
    1: Table("Uncertainties and semi-supervised methods at FT-Small, 3 points", "SAM"),
    2: Table("Ablation of SUM at FT-Medium, group averages, 1 and 3 points", "SAM"),
    4: Table("AugSeg's consistency with other prompts at FT-Small, 1 point", "AugSeg Mixed-Prompt"),
    5: Table("Uncertainty-aware sampling, one boundary point", "SUM w/o uncertainty sampling"),
    6: Table(
        "SAM and SUM (FT-Medium) with three image encoders, 1 and 6 points",
        {f"SUM ViT-{size}": f"SAM ViT-{size}" for size in "BLH"},
    ),
    7: Table("Ablation of SUM at FT-Medium, 1 point", "Vanilla"),
    8: Table("Ablation of SUM at FT-Medium, 3 points", "Vanilla"),
    9: Table("Ablation of SUM at FT-Medium, 6 points", "Vanilla"),
    10: Table("HQ-SAM's architecture, single output, 1 point", "HQ-SAM", "single"),
    11: Table("HQ-SAM's architecture, single output, 6 points", "HQ-SAM", "single"),
    12: Table("HQ-SAM's architecture, single output, box", "HQ-SAM", "single"),
    13: Table("HQ-SAM's architecture, single output, box and 5 points", "HQ-SAM", "single"),
    14: Table("SAM and SUM at three sizes of the human data, 1 point", "SAM"),
    15: Table("SAM and SUM at three sizes of the human data, 5 points", "SAM"),
    16: Table("SAM and SUM at three sizes of the human data, 6 points", "SAM"),
    17: Table("SAM and SUM at three sizes of the human data, box", "SAM"),
    18: Table("SAM and SUM at three sizes of the human data, box and 5 points", "SAM"),
}
ALSO = {"SAM": "SAM ViT-H", "SUM": "SUM ViT-H"}
"""What Table 6 calls the models of all other tables."""


def paper_tables() -> pd.DataFrame:
    """All values of the paper's tables, in points.

    Columns: table (str), train_set, prompt, rounds (int), metric, task, dataset, model, value. A group
    average has dataset "average"; the prompt "box+points" is our prompt "box" from round 2 on; HQSeg-44K
    alone is FT-Small without its unlabeled images, and called so.
    """
    paper = pd.read_csv(Path(__file__).parent / "paper_tables.csv", dtype={"table": str})
    return paper.assign(
        prompt=paper["prompt"].replace("box+points", "box"),
        train_set=paper["train_set"].replace("HQSeg-44K", "FT-Small"),
    )


def build_table(number: int, scores: pd.DataFrame) -> pd.DataFrame:
    """Table `number` of the paper, tidy: one row per value of the paper, with ours beside it.

    Columns: table, prompt, rounds, metric, task, dataset, train_set, model, paper, ours, sd (over seeds),
    seeds, paper_difference and difference (both to `Table.reference_of` the model; points). What was not
    evaluated is NaN. Raises KeyError for a table that is not in `TABLES`.
    """
    paper = (
        paper_tables()
        .query("table == @name", local_dict={"name": str(number)})
        .rename(columns={"value": "paper"})
    )
    keys = ["prompt", "rounds", "metric", "task", "dataset", "train_set", "model"]
    ours = over_seeds(scores, TABLES[number].setting)
    ours = pd.concat([ours, ours.assign(model=ours["model"].map(ALSO)).dropna(subset="model")])
    table = paper.merge(ours, on=keys, how="left")
    wanted = table["model"].map(TABLES[number].reference_of)
    references = table[table["model"].isin(wanted.dropna())].set_index([*keys[:5], "model"])
    at = pd.MultiIndex.from_frame(table[keys[:5]].assign(model=wanted))
    table["paper_difference"] = table["paper"] - references["paper"].reindex(at).to_numpy()
    table["difference"] = table["ours"] - references["ours"].reindex(at).to_numpy()
    table["seeds"] = table["seeds"].astype("Int64")
    return table[["table", *keys, "paper", "ours", "sd", "seeds", "paper_difference", "difference"]]


MICRO_NOTE = (
    "*paper*: ViT-H and real images; *ours*: the micro model on micro sets, micro-COIFT and so on, drawn to "
    "stand for the "
    "paper's. Compare the differences, not the levels."
)
"""What the columns of a table are."""


def table_markdown(number: int, table: pd.DataFrame) -> str:
    """`build_table`'s result for people: group averages with their differences first, then every data set.

    Ours stand beside the paper's.
    """
    spec = TABLES[number]
    sets = table.groupby("model")["train_set"].nunique()
    labels = [
        model if sets[model] == 1 else f"{model} {train_set}"
        for model, train_set in zip(table["model"], table["train_set"])
    ]
    table = table.assign(label=labels)
    reference = spec.reference if isinstance(spec.reference, str) else "SAM of the same size"
    parts = [
        f"# Table {number}. {spec.caption}",
        f"Points. In brackets: difference to {reference}. ± is the standard deviation over seeds, where "
        "there are several. " + MICRO_NOTE,
    ]
    for (rounds, metric), block in table.groupby(["rounds", "metric"], sort=False):
        parts.append(f"## {metric}, {_prompt_name(block['prompt'].iloc[0], rounds)}")
        parts.append(_averages_markdown(block[block["dataset"] == "average"]))
        if (block["dataset"] != "average").any():
            parts.append(_datasets_markdown(block))
    return "\n\n".join(parts) + "\n"


def _prompt_name(prompt: str, rounds: int) -> str:
    if prompt == "box":
        return "box" if rounds == 1 else f"box and {rounds - 1} point{'s' if rounds > 2 else ''}"
    return f"{rounds} {prompt.replace('-', ' ')}{'s' if rounds > 1 else ''}"


def _averages_markdown(block: pd.DataFrame) -> str:
    tasks = [task for task in (*TASKS, "all") if task in set(block["task"])]
    rows = []
    for label, of_model in block.groupby("label", sort=False):
        by_task, cells = of_model.set_index("task"), [label]
        for task in tasks:
            row = by_task.loc[task]
            spread = "" if pd.isna(row["sd"]) else f" ± {fixed(row['sd'])}"
            for value, difference in (
                (fixed(row["paper"]), row["paper_difference"]),
                (fixed(row["ours"]) + spread, row["difference"]),
            ):
                cells.append(value if pd.isna(difference) else f"{value} ({fixed(difference, sign=True)})")
        rows.append(cells)
    return markdown_table(
        ["average", *(f"{task}, {source}" for task in tasks for source in ("paper", "ours"))], rows
    )


def _datasets_markdown(block: pd.DataFrame) -> str:
    labels, rows = list(block["label"].unique()), []
    for (task, dataset), of_set in block.groupby(["task", "dataset"], sort=False):
        name = f"**{task}, average**" if dataset == "average" else dataset
        values = of_set.set_index("label")
        rows.append(
            [name, *(fixed(values.loc[label, source]) for label in labels for source in ("paper", "ours"))]
        )
    return markdown_table(
        ["data set", *(f"{label}, {source}" for label in labels for source in ("paper", "ours"))], rows
    )


def write_tables(scores: pd.DataFrame, tables: Path, metrics: Path) -> list[Path]:
    """Write every table and all scores: `tables/table-<number>.{csv,md}`, `metrics/per_dataset.csv`; give the
    paths."""
    paths = []
    for number in TABLES:
        table = build_table(number, scores)
        paths.append(write_csv(table, Path(tables) / f"table-{number:02d}.csv"))
        paths.append(Path(tables) / f"table-{number:02d}.md")
        write_text(paths[-1], table_markdown(number, table))
    return [*paths, write_csv(scores, Path(metrics) / "per_dataset.csv", digits=4)]
