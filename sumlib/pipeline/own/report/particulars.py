"""The sections with examples, data, what was left out, time, memory and settings."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sumlib.pipeline.own.report.document import Block, Picture, Pictures, Points, Section, Table, Text
from sumlib.pipeline.own.report.pictures import example_kinds
from sumlib.pipeline.own.report.results import Example, Results

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
