"""The sections of a report, each from what there is; a section without content is None."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sumlib.pipeline.own.evaluation import FEW, compared, scores
from sumlib.pipeline.own.keep import enough
from sumlib.pipeline.own.probe import FOUNDATION, TUNED, summary
from sumlib.pipeline.own.report.document import Block, Picture, Pictures, Points, Section, Table, Text
from sumlib.pipeline.own.report.lead import between, first_agreement, honest_gain
from sumlib.pipeline.own.report.pictures import example_kinds
from sumlib.pipeline.own.report.results import HUMAN, MODELS, Example, Results
from sumlib.report.text import fixed, interval_text

LISTED = 40
"""Single files that are listed at most."""
KINDS = {
    "better": ("Best examples", "The masks that gained most after one click, at most one an image."),
    "worse": ("Worst examples", "The masks that lost most after one click, at most one an image."),
    "uncertainty": (
        "Where pseudo-labels are uncertain",
        "SAM's masks of unlabeled images. SUM trusts the bright parts less. Images are picked evenly.",
    ),
}


def said_interval(row: pd.Series) -> str:
    """A paired difference with its interval, or alone where there is none."""
    if pd.isna(row["low"]):
        return fixed(row["value"], sign=True)
    return interval_text(row["value"], row["low"], row["high"])


# ---- is it better -------------------------------------------------------------------------------


def held_out_section(results: Results, plot: Path | None) -> Section | None:
    """Scores of every model, and the paired differences."""
    table = results.held_out
    if table is None or table.empty:
        return None
    masks, images = table.drop_duplicates(["dataset", "image", "mask"]), table["image"].nunique()
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
    header = [f"{TUNED} minus {other}", "mIoU (95 % interval)", "mBIoU", "masks better / worse by > 5"]
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
    return Table(["first prompt", FOUNDATION, TUNED, "change"], cells)


def _seen(table: pd.DataFrame) -> str:
    images = table.drop_duplicates("image")
    seen = int(images["trained"].sum())
    if not seen:
        return f"None of the {len(images)} images was used in training."
    return (
        f"{seen} of the {len(images)} images were used in training, with SAM's masks as labels: on new "
        "images the agreement may be lower. Unlabeled images that training does not need would serve here."
    )


# ---- how much was kept, how many masks are needed -----------------------------------------------


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


# ---- examples -----------------------------------------------------------------------------------


def example_sections(results: Results, folder: Path) -> list[Section]:
    """Pictures by kind; their files lie below ``folder``. Examples whose files are gone are left out."""
    sections = []
    for kind, examples in example_kinds(results.examples).items():
        title, text = KINDS.get(kind, (kind.capitalize(), ""))
        rows = [_row(one, folder) for one in examples if all((folder / f).is_file() for _, f in one.pictures)]
        if rows:
            sections.append(Section(title, [*([Text(text)] if text else []), *rows]))
    return sections


def _row(example: Example, folder: Path) -> Pictures:
    plain = example.caption.replace("`", "")
    parts = [Picture(folder / file, f"{title}, {plain}", title) for title, file in example.pictures]
    return Pictures(parts, example.caption)


# ---- what was left out, what it took ------------------------------------------------------------


def data_section(results: Results) -> Section | None:
    """What the model was made of."""
    about = results.about
    counted = [
        (key, text)
        for key, text in (
            ("train", "trained on"),
            ("held_out", "held out"),
        )
        if f"{key}_images" in about
    ]
    points = [
        f"{text}: {about[f'{key}_masks']} masks in {about[f'{key}_images']} images"
        if f"{key}_masks" in about
        else f"{text}: {about[f'{key}_images']} images"
        for key, text in counted
    ]
    if "unlabeled_images" in about:
        points.append(f"unlabeled: {about['unlabeled_images']} images")
    names = {
        "model_type": "architecture",
        "checkpoint": "started from",
        "tuning": "tuning",
        "recipe": "recipe",
    }
    points += [f"{text}: `{about[key]}`" for key, text in names.items() if about.get(key)]
    if about.get("device"):
        points.append(f"device: {about['device']}")
    if results.tasks:
        points.append(
            "tasks: " + ", ".join(f"{name} (id {number})" for name, number in results.tasks.items())
        )
    return Section("Data and model", [Points(points)]) if points else None


def skipped_section(results: Results) -> Section | None:
    """Counts by kind, and the files."""
    table = results.skipped
    if table is None:
        return None
    if table.empty:
        return Section("What was left out", [Text("Nothing: every image and every mask could be used.")])
    counts = table["kind"].value_counts(sort=True)
    blocks: list[Block] = [Points([f"{count} x {kind}" for kind, count in counts.items()])]
    rows = [
        [str(row.name), str(row.reason)]
        for row in table.head(LISTED)[["name", "reason"]].itertuples(index=False)
    ]
    blocks.append(Table(["what", "why, and what to do"], rows, text=(0, 1)))
    if len(table) > LISTED:
        blocks.append(Text(f"... and {len(table) - LISTED} more in `skipped.csv` beside the results."))
    return Section("What was left out", blocks)


def stages_section(results: Results) -> Section | None:
    """Time and memory of each stage."""
    table = results.stages
    if table is None or table.empty:
        return None
    gpu = "gpu_mb" in table and table["gpu_mb"].notna().any()
    columns = ["memory_mb", *(["gpu_mb"] if gpu else [])]
    rows = [
        [str(row["stage"]), duration(row["seconds"]), *(size(1e6 * row[column]) for column in columns)]
        for _, row in table.iterrows()
    ]
    rows.append(["all", duration(table["seconds"].sum()), *(size(1e6 * table[one].max()) for one in columns)])
    header = ["stage", "time", "peak memory", *(["peak GPU memory"] if gpu else [])]
    return Section("Time and memory", [Table(header, rows, strong=[len(rows) - 1])])


def duration(seconds: float) -> str:
    """Time for people.

    >>> duration(0.04), duration(75), duration(7260), duration(float("nan"))
    ('0.0 s', '1 min 15 s', '2 h 1 min', '–')
    """
    if pd.isna(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes for people.

    >>> size(5e3), size(2.5e6), size(3.21e9), size(float("nan"))
    ('5.0 kB', '2.5 MB', '3.2 GB', '–')
    """
    if pd.isna(count):
        return "–"
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if count >= u[0]), (1e3, "kB"))
    return f"{count / unit:.1f} {name}"


def settings_section(results: Results) -> Section | None:
    """Settings and versions."""
    flat = [*_flat(results.settings)]
    blocks: list[Block] = []
    if flat:
        blocks.append(Table(["setting", "value"], [[f"`{key}`", str(one)] for key, one in flat], text=(0, 1)))
    if results.versions:
        blocks.append(
            Table(["package", "version"], [[k, str(v)] for k, v in results.versions.items()], text=(0, 1))
        )
    return Section("Settings and versions", blocks, folded=True) if blocks else None


def _flat(settings: dict, start: str = "") -> Sequence[tuple[str, object]]:
    """Nested settings as (key.key, value)."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", "–" if value is None else value
