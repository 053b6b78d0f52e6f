"""What refinement does to SAM's masks on test sets: Table 3, with intervals, beside the paper's."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sumlib.base.files import write_text
from sumlib.report.intervals import RESAMPLES, image_draw, interval
from sumlib.report.results import METRICS, TASKS
from sumlib.report.tables import paper_tables
from sumlib.report.text import fixed, interval_text, markdown_table, write_csv


def changes(
    measured: Mapping[str, Mapping[str, Mapping]],
    groups: Mapping[str, Sequence[str]],
    *,
    draws: int = RESAMPLES,
) -> pd.DataFrame:
    """What refinement does by task group, in points.

    ``measured[name][data set]`` is a level of `sumlib.refiner.measure.measure_refinement`; ``groups`` {task
    group: its data sets}, to which "all" is added. Means are over masks, then over data sets; intervals are
    by bootstrap over the images of each data set, with the same draws for every name and metric.

    Columns: name, metric, task, sam, refined, difference, low, high (95 %), worse (% of the masks).
    """
    groups = {**groups, "all": [name for names in groups.values() for name in names]}
    first, rng = next(iter(measured.values())), np.random.default_rng(0)
    draw = {name: image_draw(sorted(set(first[name]["image"])), rng, draws) for name in groups["all"]}
    rows = []
    for name, by_set in measured.items():
        for metric, key in METRICS.items():
            of_set = {one: _change(by_set[one], key, draw[one]) for one in groups["all"]}
            for group, datasets in groups.items():
                sam, refined, worse, resampled = zip(*(of_set[one] for one in datasets))
                change = interval(np.mean(refined) - np.mean(sam), np.mean(resampled, 0))
                means = {"sam": np.mean(sam), "refined": np.mean(refined), "difference": change.value}
                spread = {"low": change.low, "high": change.high, "worse": np.mean(worse)}
                rows.append({"name": name, "metric": metric, "task": group} | means | spread)
    return pd.DataFrame(rows)


def _change(masks: Mapping[str, Sequence], key: str, draw) -> tuple[float, float, float, np.ndarray]:
    """Of one data set, in points: mean before and after, % of masks that get worse, resampled mean
    differences (R,)."""
    before, after = (100 * np.array(masks[f"{who}_{key}"]) for who in ("sam", "refined"))
    return before.mean(), after.mean(), 100 * (after < before).mean(), draw(after - before, masks["image"])


def refinement_table(changed: pd.DataFrame) -> pd.DataFrame:
    """Table 3: `changes` of the prompts "point" and "box", with the columns paper_sam and paper_refined.

    The paper refines masks from boxes; NaN beside the others. The column "name" becomes "prompt".
    """
    table = changed.rename(columns={"name": "prompt"})
    paper = (
        paper_tables().query("table == '3'").pivot(index=["metric", "task"], columns="model", values="value")
    )
    for column, model in (("paper_sam", "SAM"), ("paper_refined", "Mask-refinement module")):
        table[column] = [
            paper[model].get((row.metric, row.task), np.nan) if row.prompt == "box" else np.nan
            for row in table.itertuples()
        ]
    return table


def refinement_markdown(table: pd.DataFrame, budget: str) -> str:
    """`refinement_table`'s result for people; ``budget`` ("small") names the refinement module."""
    cells = [
        [
            row.prompt,
            row.metric,
            row.task,
            fixed(row.paper_sam),
            fixed(row.paper_refined),
            fixed(row.paper_refined - row.paper_sam, sign=True),
            fixed(row.sam),
            fixed(row.refined),
            interval_text(row.difference, row.low, row.high),
            f"{row.worse:.0f} %",
        ]
        for row in table.itertuples()
    ]
    header = ["prompt", "metric", "task", "paper, SAM", "refined", "difference"]
    header += ["ours, SAM", "refined", "difference (95 %)", "masks that get worse"]
    return "\n\n".join(
        [
            f"# Table 3. SAM's masks before and after the mask-refinement module (FT-{budget.title()}'s, "
            "trained on masks "
            "from points)",
            "Points. The paper refines masks from boxes; ours also those from one point. *Paper*: ViT-H and "
            "real images; "
            "*ours*: the micro model on micro sets, micro-COIFT and so on, drawn to stand for the paper's. "
            "Compare the "
            "differences.",
            markdown_table(header, cells, text=(0, 1, 2)) + "\n",
        ]
    )


def write_refinement(table: pd.DataFrame, budget: str, folder: Path) -> list[Path]:
    """Write `table-03.csv` and `table-03.md` into ``folder``; give the paths."""
    path = Path(folder) / "table-03.md"
    write_text(path, refinement_markdown(table, budget))
    return [write_csv(table, Path(folder) / "table-03.csv"), path]


def refinement_says(table: pd.DataFrame) -> str:
    """The main numbers of `refinement_table` as a Markdown list."""
    rows = table.set_index(["prompt", "metric", "task"])
    return "\n".join([*_gains(rows), _losses(rows)])


def _gains(rows: pd.DataFrame) -> Iterator[str]:
    for prompt in rows.index.unique("prompt"):
        parts = [
            f"{task} "
            + " and ".join(
                f"{fixed(rows.loc[(prompt, metric, task), 'difference'], sign=True)} {metric}"
                for metric in METRICS
            )
            for task in (*TASKS, "all")
        ]
        yield f"- From a {prompt}: {'; '.join(parts)}."


def _losses(rows: pd.DataFrame) -> str:
    lost = [
        f"{task} ({prompt})"
        for prompt in rows.index.unique("prompt")
        for task in TASKS
        if rows.loc[(prompt, "mIoU", task), "high"] < 0
    ]
    return (
        f"- Refined masks are worse than SAM's in mIoU, beyond chance, on: {', '.join(lost) or 'no group'}. "
        "Where that is "
        "so, the *disagreement* is worth more than the masks."
    )
