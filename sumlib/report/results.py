"""Our results beside the paper's: averages over masks, data sets and task groups, Tables 1, 2 and 4-18, and paired bootstrap intervals.

Per-mask results come as one Parquet file per run with the columns `COLUMNS`; all scores leave this module in points (0-100). Averages follow
METHOD.md section 8: over masks, then over the data sets of a task group; "all" is the mean over the data sets of all groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

TASKS = ("salient", "entity", "part")
METRICS = {"mIoU": "iou", "mBIoU": "biou"}
COLUMNS = (
    "run",
    "model",
    "train_set",
    "seed",
    "task",
    "dataset",
    "image",
    "mask",
    "prompt",
    "setting",
    "round",
    "iou",
    "biou",
)
_RUN = ["run", "model", "train_set", "seed"]
_POINT = ["prompt", "setting", "rounds", "metric"]


@dataclass(frozen=True)
class Table:
    """How a table of the paper is shown: its caption and the model that differences are taken to, one for all or for each."""

    caption: str
    reference: str | Mapping[str, str]
    setting: str = "oracle"

    def reference_of(self, model: str) -> str | None:
        """The model that ``model`` is compared with; None if it is compared with none."""
        found = self.reference if isinstance(self.reference, str) else self.reference.get(model)
        return None if found == model else found


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
    """All values of the paper's tables, in points: table (str), train_set, prompt, rounds (int), metric, task, dataset, model, value.

    A group average has dataset "average"; the prompt "box+points" is our prompt "box" from round 2 on; HQSeg-44K alone is FT-Small without its
    unlabeled images, and called so.
    """
    paper = pd.read_csv(Path(__file__).parent / "paper_tables.csv", dtype={"table": str})
    return paper.assign(
        prompt=paper["prompt"].replace("box+points", "box"),
        train_set=paper["train_set"].replace("HQSeg-44K", "FT-Small"),
    )


def dataset_order() -> dict[str, list[str]]:
    """The 14 test sets of the paper by task group, in the paper's order."""
    rows = paper_tables().query("table == '14' and dataset != 'average'")
    return {task: list(rows.loc[rows["task"] == task, "dataset"].unique()) for task in TASKS}


def load_results(folder: Path) -> pd.DataFrame:
    """Per-mask results of every run in `folder` (`<run>.parquet`), in the order of the file names.

    Raises FileNotFoundError where there is no file, ValueError where one is not a complete result of its run or runs differ in their data sets.
    """
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no <run>.parquet: run `dvc repro` (stage evaluate) first")
    frames = []
    for path in paths:
        frame = pd.read_parquet(path)
        if missing := [column for column in COLUMNS if column not in frame]:
            raise ValueError(
                f"{path} lacks the columns {', '.join(missing)}: repeat it with `dvc repro evaluate@{path.stem}`"
            )
        if set(frame["run"]) != {path.stem}:
            raise ValueError(
                f"{path} holds the run(s) {sorted(set(frame['run']))}: repeat it with `dvc repro evaluate@{path.stem}`"
            )
        frames.append(frame[list(COLUMNS)])
    results = pd.concat(frames, ignore_index=True)
    for column in ("run", "model", "train_set", "task", "dataset", "image", "prompt", "setting"):
        results[column] = results[column].astype("category")
    _check_complete(results)
    return results


def _check_complete(results: pd.DataFrame) -> None:
    datasets = set(results["dataset"])
    for (run, prompt, setting), part in results.groupby(
        ["run", "prompt", "setting"], observed=True, sort=True
    ):
        if absent := sorted(datasets - set(part["dataset"])):
            raise ValueError(
                f"run {run} ({prompt}, {setting}) has no result on {', '.join(absent)}: repeat it with `dvc repro evaluate@{run}`"
            )
    if not np.isfinite(results[["iou", "biou"]].to_numpy()).all():
        raise ValueError("an IoU is not a number: repeat the stage evaluate")


def aggregate(results: pd.DataFrame) -> pd.DataFrame:
    """Mean scores in points: run, model, train_set, seed, task, dataset, prompt, setting, rounds, metric, value, masks.

    One row per data set (mean over masks), per task group (dataset "average") and over all data sets (task "all", dataset "average").
    """
    keys = [*_RUN, "task", "dataset", "prompt", "setting", "round"]
    columns = results.astype({"iou": np.float64, "biou": np.float64})
    means = (
        columns.groupby(keys, observed=True)
        .agg(mIoU=("iou", "mean"), mBIoU=("biou", "mean"), masks=("iou", "size"))
        .reset_index()
    )
    means = means.rename(columns={"round": "rounds"}).astype(
        dict.fromkeys(("run", "model", "train_set", "task", "dataset", "prompt", "setting"), str)
    )
    scores = means.melt(
        [*_RUN, "task", "dataset", "prompt", "setting", "rounds", "masks"], list(METRICS), "metric", "value"
    )
    scores["value"] *= 100
    groups = (
        scores.groupby([*_RUN, "task", *_POINT])
        .agg(value=("value", "mean"), masks=("masks", "sum"))
        .reset_index()
    )
    everything = (
        scores.groupby([*_RUN, *_POINT]).agg(value=("value", "mean"), masks=("masks", "sum")).reset_index()
    )
    scores = pd.concat(
        [scores, groups.assign(dataset="average"), everything.assign(task="all", dataset="average")],
        ignore_index=True,
    )
    return _sort(scores)[[*_RUN, "task", "dataset", *_POINT, "value", "masks"]]


def _sort(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the paper: task group, its data sets, its average last."""
    datasets = [name for names in dataset_order().values() for name in names]
    rank = {name: index for index, name in enumerate([*TASKS, "all", *datasets, "average", *METRICS])}
    order = ["run", "prompt", "setting", "rounds", "metric", "task", "dataset"]
    ranked = {"task", "dataset", "metric"}
    return scores.sort_values(
        order,
        key=lambda c: c.map(lambda v: (rank.get(v, 999), str(v))) if c.name in ranked else c,
        kind="stable",
        ignore_index=True,
    )


def over_seeds(scores: pd.DataFrame, setting: str = "oracle") -> pd.DataFrame:
    """Mean over the seeds of a model: model, train_set, task, dataset, prompt, rounds, metric, ours, sd (points; NaN for one seed), seeds."""
    keys = ["model", "train_set", "task", "dataset", "prompt", "rounds", "metric"]
    chosen = scores[scores["setting"] == setting]
    return chosen.groupby(keys, sort=False)["value"].agg(ours="mean", sd="std", seeds="size").reset_index()


def build_table(number: int, scores: pd.DataFrame) -> pd.DataFrame:
    """Table `number` of the paper, tidy: one row per value of the paper, with ours beside it.

    Columns: table, prompt, rounds, metric, task, dataset, train_set, model, paper, ours, sd (over seeds), seeds, paper_difference and difference (both to
    `Table.reference_of` the model; points). What was not evaluated is NaN. Raises KeyError for a table that is not in `TABLES`.
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


def fixed(value: float, digits: int = 1, sign: bool = False) -> str:
    """`value` with `digits` decimals; no negative zero; "–" for NaN.

    >>> fixed(-0.04), fixed(1.25, 2, sign=True), fixed(float("nan"))
    ('0.0', '+1.25', '–')
    """
    if pd.isna(value):
        return "–"
    return f"{round(float(value), digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A Markdown table: the columns `text` to the left, the others to the right."""
    sides = ["---" if i in text else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, sides, *rows))


def table_markdown(number: int, table: pd.DataFrame) -> str:
    """`build_table`'s result for people: group averages with differences first, then every data set, ours beside the paper's."""
    spec = TABLES[number]
    sets = table.groupby("model")["train_set"].nunique()
    labels = [
        model if sets[model] == 1 else f"{model} {train_set}"
        for model, train_set in zip(table["model"], table["train_set"])
    ]
    table = table.assign(label=labels)
    parts = [
        f"# Table {number}. {spec.caption}",
        (
            f"Points. In brackets: difference to {spec.reference if isinstance(spec.reference, str) else 'SAM of the same size'}. ± is the standard deviation over seeds, where there are several. *paper*: ViT-H and real images; "
            "*ours*: the micro model on the micro sets named after the paper's. Compare the differences, not the levels."
        ),
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


def write_csv(frame: pd.DataFrame, path: Path, digits: int = 2) -> Path:
    """Write `frame` with `digits` decimals and "\\n" line ends, the same bytes for the same values; whole or not at all."""
    rounded = frame.copy()
    for column in rounded.select_dtypes("float"):
        rounded[column] = rounded[column].round(digits) + 0.0
    return write_text(rounded.to_csv(index=False, float_format=f"%.{digits}f", lineterminator="\n"), path)


def write_text(text: str, path: Path) -> Path:
    """Write `text` as UTF-8, whole or not at all, and make the folder where it does not exist."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    return part.replace(path)


def write_tables(scores: pd.DataFrame, tables: Path, metrics: Path) -> list[Path]:
    """Write every table as `tables/table-<number>.{csv,md}` and all scores as `metrics/per_dataset.csv`; give the paths."""
    paths = []
    for number in TABLES:
        table = build_table(number, scores)
        paths.append(write_csv(table, Path(tables) / f"table-{number:02d}.csv"))
        paths.append(write_text(table_markdown(number, table), Path(tables) / f"table-{number:02d}.md"))
    return [*paths, write_csv(scores, Path(metrics) / "per_dataset.csv", digits=4)]


def workspace(profile: str | None = None) -> tuple[Path, Path]:
    """(folder of the per-mask results, folder for tables and figures) of a profile.

    Under the profile smoke both are temporary, removed at exit, and the results are made on the spot by `smoke_results`: nothing in the repository is touched.
    """
    from sumlib.config.params import load_config
    from sumlib.pipeline.workspace import open_workspace

    config = load_config(profile)
    artifacts, results = open_workspace(config)
    evaluated = artifacts / "evaluate"
    return (smoke_results(evaluated) if config.profile == "smoke" else evaluated), results


def smoke_results(folder: Path, names: Sequence[str] = ("sam", "sum-medium")) -> Path:
    """Evaluate SAM and an untrained SUM on the smoke profile's few test images; write `<run>.parquet` into `folder` and return it."""
    from sumlib.config.params import load_config
    from sumlib.data.registry import TASK_GROUPS, open_dataset
    from sumlib.evaluate import evaluate_run
    from sumlib.model.foundation import load_foundation

    config = load_config("smoke")
    datasets = [
        open_dataset(name, config.data_root)[: config.evaluate.limit_images]
        for group in TASK_GROUPS.values()
        for name in group
    ]
    model = load_foundation(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        run = config.run(name)
        evaluate_run(model, datasets, run=run, config=config.evaluate).to_parquet(
            folder / f"{name}.parquet", index=False
        )
    return folder
