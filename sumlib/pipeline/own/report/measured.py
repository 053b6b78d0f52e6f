"""The sections that say what was learnt and what was forgotten; one without content is None."""

from pathlib import Path

import pandas as pd

from sumlib.pipeline.own.evaluation import FEW, compared, scores
from sumlib.pipeline.own.probe import FOUNDATION, TUNED, summary
from sumlib.pipeline.own.report.document import Block, Picture, Section, Table, Text
from sumlib.pipeline.own.report.lead import between, first_agreement, said_interval
from sumlib.pipeline.own.report.results import HUMAN, MODELS, Results
from sumlib.report.text import fixed, interval_text

# ---- what was learnt ----------------------------------------------------------------------------


def held_out_section(results: Results, plot: Path | None) -> Section | None:
    """Scores of every model, and the paired differences."""
    table = results.held_out
    if table is None or table.empty:
        return None
    masks, images = table.drop_duplicates(["dataset", "image", "mask"]), table["photo"].nunique()
    blocks: list[Block] = [
        Text(
            f"{len(masks)} masks in {images} images that no model was trained on. "
            "mIoU is the overlap of mask and truth (intersection over union), mBIoU the same in a narrow "
            "band along the outline; both in points of 100."
        ),
        _scores_table(table),
    ]
    for other in (FOUNDATION, HUMAN):
        if {TUNED, other} <= set(table["model"]):
            blocks.append(_change_table(table, other))
    if len(blocks) > 2:
        blocks.append(Text("Better / worse: masks whose IoU rose or fell by more than 5 points."))
    if images < FEW:
        blocks.append(Text(f"No intervals are given: {images} images are too few (at least {FEW})."))
    if plot is not None:
        blocks.append(Picture(plot, "Gain over SAM by number of points, a line a model", _bands(images)))
    blocks += _by_task(table)
    return Section("Held-out masks: before and after", blocks)


def _bands(images: int) -> str:
    bands = " Bands: 95 % intervals over images." if images >= FEW else ""
    return f"Points above SAM, which is the line at zero.{bands}"


def _models(table: pd.DataFrame) -> list[str]:
    """The models of a table in the order in which they are shown."""
    names = list(dict.fromkeys(table["model"]))
    return [*(name for name in MODELS if name in names), *(name for name in names if name not in MODELS)]


def _scores_table(table: pd.DataFrame) -> Table:
    values = scores(table).set_index(["model", "metric", "round"])["value"]
    rounds = sorted(table["round"].unique())
    header = ["model", *(f"{metric}, {number}" for metric in ("mIoU", "mBIoU") for number in rounds)]
    header[1] += " point" if rounds[0] == 1 else " points"
    rows = [
        [model, *(fixed(values[model, metric, number]) for metric in ("mIoU", "mBIoU") for number in rounds)]
        for model in _models(table)
    ]
    strong = [k for k, row in enumerate(rows) if row[0] == TUNED]
    return Table(header, rows, strong=strong)


def _change_table(table: pd.DataFrame, other: str) -> Table:
    changes = compared(table, TUNED, other)
    rows = []
    for number, part in changes.groupby("round"):
        one = part.set_index("metric")
        counts = f"{one.loc['mIoU', 'better']} / {one.loc['mIoU', 'worse']}"
        rows.append(
            [_points(number), said_interval(one.loc["mIoU"]), said_interval(one.loc["mBIoU"]), counts]
        )
    header = [f"{TUNED} minus {other}", "mIoU (95 % interval)", "mBIoU", "better / worse"]
    return Table(header, rows)


def _points(number: int) -> str:
    return "1 point" if number == 1 else f"{number} points"


def _by_task(table: pd.DataFrame) -> list[Block]:
    """The differences by task, where there are several."""
    tasks = list(dict.fromkeys(table["task"]))
    if len(tasks) < 2 or not {TUNED, FOUNDATION} <= set(table["model"]):
        return []
    rows = []
    for task in tasks:
        changes = compared(table[table["task"] == task], TUNED, FOUNDATION).set_index(["metric", "round"])
        one = changes.loc["mIoU"]
        rows.append([task, str(one["masks"].iloc[0]), *(said_interval(row) for _, row in one.iterrows())])
    rounds = sorted(table["round"].unique())
    return [Table(["task", "masks", *(f"mIoU, {number}" for number in rounds)], rows)]


def extra_section(results: Results) -> Section | None:
    """Further sets that the user named."""
    table = results.extra
    if table is None or table.empty:
        return None
    blocks: list[Block] = [Text("Further sets that the project names; nothing was trained on them.")]
    rows = []
    for name, part in table.groupby("dataset", sort=False):
        if not {TUNED, FOUNDATION} <= set(part["model"]):
            continue
        first = part["round"].min()
        values = scores(part[part["round"] == first]).set_index(["model", "metric"])["value"]
        change = compared(part, TUNED, FOUNDATION).set_index(["metric", "round"])
        rows += [
            [
                f"{name}, {metric}",
                str(int(change.loc[(metric, first), "masks"])),
                fixed(values[FOUNDATION, metric]),
                fixed(values[TUNED, metric]),
                said_interval(change.loc[(metric, first)]),
            ]
            for metric in ("mIoU", "mBIoU")
        ]
    header = ["set, at one point", "masks", FOUNDATION, TUNED, "change (95 % interval)"]
    return Section("Further sets", [*blocks, Table(header, rows)]) if rows else None


# ---- what was forgotten -------------------------------------------------------------------------


def probe_section(results: Results, plot: Path | None) -> Section | None:
    """Agreement with SAM by size and level."""
    rows = first_agreement(results)
    if rows is None:
        return None
    table, first = results.probe, rows.iloc[0]
    how = {"point": "at the point that produced it", "box": "by its box"}[first["prompt"]]
    blocks: list[Block] = [
        Text(
            f"SAM's confident automatic masks of {first['images']} images, each asked for again {how}. "
            "Agreement is the overlap (IoU) of the model's answer with SAM's mask. It has no truth: a lower "
            "value means another answer, which can be a better one. That is why held-out masks stand first."
        ),
        _agreement_table(rows),
    ]
    if plot is not None:
        blocks.append(
            Picture(
                plot, "Agreement with SAM by size and level of masks", "Lines: 95 % intervals over images."
            )
        )
    if HUMAN in set(table["model"]):
        human = first_agreement(results, HUMAN).iloc[0]
        blocks.append(
            Text(
                f"Trained on the human masks alone, the model agrees with SAM to {fixed(human['iou'])} %"
                f"{between(human['low'], human['high'])}: unlabeled images are there to prevent that."
            )
        )
    more = _other_prompts(summary(table, TUNED), first)
    blocks += [more] if more else []
    blocks.append(Text(_seen(table)))
    return Section("What it forgot: agreement with SAM", blocks)


def _agreement_table(rows: pd.DataFrame) -> Table:
    titles = {"all": "all masks", "whole": "whole things", "part": "parts (inside another mask)"}
    titles |= {
        "small": "small (below 0.3 % of the image)",
        "medium": "medium (0.3 to 3 %)",
        "large": "large (above 3 %)",
    }
    cells = [
        [
            titles.get(row.group, row.group),
            str(row.masks),
            fixed(row.sam),
            f"{fixed(row.iou)} ({fixed(row.low)} to {fixed(row.high)})",
            fixed(row.biou),
            f"{fixed(row.lost)} %",
        ]
        for row in rows.itertuples()
    ]
    header = ["masks", "number", FOUNDATION, f"{TUNED} (95 % interval)", f"{TUNED}, outline", "lost"]
    return Table(header, cells, strong=[0])


def _other_prompts(rows: pd.DataFrame, first: pd.Series) -> Table | None:
    """All masks, for the prompts and rounds that are not the first."""
    rest = rows[
        (rows["by"] == "all") & ~((rows["prompt"] == first["prompt"]) & (rows["round"] == first["round"]))
    ]
    if rest.empty:
        return None
    cells = [
        [
            f"{row.prompt}" + (f", {row.round} rounds" if row.round > 1 else ""),
            fixed(row.sam),
            f"{fixed(row.iou)} ({fixed(row.low)} to {fixed(row.high)})",
            interval_text(row.change, row.change_low, row.change_high),
        ]
        for row in rest.itertuples()
    ]
    return Table(["asked by", FOUNDATION, TUNED, "change"], cells)


def _seen(table: pd.DataFrame) -> str:
    images = table.drop_duplicates("image")
    seen = int(images["trained"].sum())
    if not seen:
        return f"None of the {len(images)} images was used in training."
    return (
        f"{seen} of the {len(images)} images were used in training, with SAM's masks as labels: on new "
        "images the agreement may be lower. Unlabeled images that training does not need would serve here."
    )
