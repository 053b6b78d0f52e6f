"""The figures, in one style: colour-blind-safe (Okabe-Ito), every series also told by its marker, labels beside the lines, the same bytes on every run.

Functions take aggregated scores (`sumlib.report.results.aggregate`, points) or plain arrays and return a matplotlib Figure; `save` writes it.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sumlib.report.results import METRICS, TASKS, dataset_order, over_seeds, paper_tables

GROUPS = (*TASKS, "all")
GROUP_TITLES = {"salient": "Salient objects", "entity": "Entities", "part": "Parts", "all": "All 14 sets"}
LOOKS = {  # (model, train_set): (colour, marker)
    ("SAM", "none"): ("#4D4D4D", "o"),
    ("Human-annotation-only", "FT-Small"): ("#D55E00", "v"),
    ("Vanilla", "FT-Medium"): ("#E69F00", "s"),
    ("Mask Refinement", "FT-Medium"): ("#CC79A7", "D"),
    ("SUM w/o Task Prompt", "FT-Medium"): ("#56B4E9", "^"),
    ("SUM Continuous TP", "FT-Medium"): ("#009E73", "P"),
    ("SUM w/o uncertainty sampling", "FT-Medium"): ("#8C6D1F", "X"),
    ("SUM", "FT-Small"): ("#56B4E9", "^"),
    ("SUM", "FT-Medium"): ("#0072B2", "o"),
    ("SUM", "FT-Large"): ("#1B2A6B", "s"),
}
ABLATION = [
    ("SAM", "none"),
    ("Vanilla", "FT-Medium"),
    ("Mask Refinement", "FT-Medium"),
    ("SUM w/o Task Prompt", "FT-Medium"),
    ("SUM Continuous TP", "FT-Medium"),
    ("SUM", "FT-Medium"),
]
SIZES = [("SAM", "none"), ("SUM", "FT-Small"), ("SUM", "FT-Medium"), ("SUM", "FT-Large")]
FIGURES = {
    14: ("Ablation at FT-Medium, point prompts", "point", ABLATION),
    17: ("SAM and SUM at three sizes of the human data, point prompts", "point", SIZES),
    18: ("SAM and SUM at three sizes of the human data, box, then points", "box", SIZES),
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.2,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
    "figure.constrained_layout.h_pad": 0.06,
}


class Shown(Figure):
    """A figure that a notebook shows in the common style, without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        save(self, file, dpi=110)
        return file.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, in the common style."""
    return Shown(figsize=(width, height), layout="constrained")


def styled(draw):
    """Decorator: run `draw` under `STYLE`."""

    def inside(*args, **options):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    inside.__name__, inside.__doc__ = draw.__name__, draw.__doc__
    return inside


def save(figure: Figure, path: Path | io.BytesIO, dpi: int = 200) -> Path | io.BytesIO:
    """Write `figure` as PNG, to a path or a file in memory, without dates or versions in it."""
    if not isinstance(path, io.BytesIO):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})
    return path


def _spread_labels(axes, labels: Sequence[tuple[float, str, str]], x: float) -> None:
    """Write (y, text, colour) to the right of the axes at height y, moved apart where they would touch, each with a thin leader to its y."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.115
    ordered = sorted(labels)
    heights = [y for y, _, _ in ordered]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    shift = (sum(heights) - sum(y for y, _, _ in ordered)) / max(len(heights), 1)
    heights = [height - shift for height in heights]
    overflow = max(heights[-1] - high, 0) if heights else 0
    for (y, text, colour), height in zip(ordered, heights):
        axes.annotate(
            text,
            (x, y),
            (1.12, height - overflow),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            fontsize=7.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _label(key: tuple[str, str], keys: Sequence[tuple[str, str]]) -> str:
    model, train_set = key
    return model if [name for name, _ in keys].count(model) == 1 else f"{model} {train_set}"


@styled
def rounds_figure(number: int, scores: pd.DataFrame, last_round: int = 6) -> Figure:
    """Figures 14, 17, 18: mIoU and mBIoU over the rounds by task group; ours above (bars: standard deviation over seeds), the paper's values below.

    `scores` as from `sumlib.report.results.aggregate`. Models that were not evaluated are left out. Raises KeyError for another `number`.
    """
    title, prompt, keys = FIGURES[number]
    ours = (
        over_seeds(scores)
        .query("dataset == 'average' and prompt == @prompt and rounds <= @last_round")
        .rename(columns={"ours": "value"})
    )
    paper = (
        paper_tables()
        .query("dataset == 'average' and prompt == @prompt and rounds <= @last_round")
        .drop_duplicates(["model", "train_set", "rounds", "metric", "task"])
    )
    figure = new_figure(10.2, 8.2)
    grid = figure.subplots(4, 4, sharex=True, height_ratios=[1.3, 1, 1.3, 1])
    for m, metric in enumerate(METRICS):
        for s, (source, values) in enumerate((("micro, ours", ours), ("paper", paper))):
            for t, task in enumerate(GROUPS):
                axes = grid[2 * m + s, t]
                chosen = values[(values["metric"] == metric) & (values["task"] == task)]
                _rounds_panel(axes, chosen, keys, labels=t == 3, faded=source == "paper")
                axes.set_xticks(range(1, last_round + 1))
                if m == s == 0:
                    axes.set_title(GROUP_TITLES[task], fontweight="bold")
            grid[2 * m + s, 0].set_ylabel(f"{metric} ({source})")
    figure.align_ylabels(grid[:, 0])
    first = "round (one more point each)" if prompt == "point" else "round (box, then one more point each)"
    figure.supxlabel(first, fontsize=8)
    figure.suptitle(f"Figure {number}. {title}", x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def _rounds_panel(axes, values: pd.DataFrame, keys, *, labels: bool, faded: bool) -> None:
    ends = []
    for key in keys:
        line = values[(values["model"] == key[0]) & (values["train_set"] == key[1])].sort_values("rounds")
        if line.empty:
            continue
        colour, marker = LOOKS[key]
        axes.plot(
            line["rounds"],
            line["value"],
            color=colour,
            marker=marker,
            linestyle=(0, (3, 2)) if faded else "-",
            linewidth=1.0 if faded else 1.5,
            markerfacecolor="white" if faded else colour,
            zorder=3 if key == ("SUM", "FT-Medium") else 2,
        )
        if "sd" in line and line["sd"].notna().any():
            axes.errorbar(
                line["rounds"],
                line["value"],
                line["sd"],
                fmt="none",
                ecolor=colour,
                elinewidth=0.8,
                alpha=0.6,
                zorder=1,
            )
        ends.append(
            (float(line["value"].iloc[-1]), _label(key, keys), colour, float(line["rounds"].iloc[-1]))
        )
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    axes.set_xlim(0.7, 6.3)
    if not ends:
        axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color="#777777")
    if labels and ends:
        _spread_labels(axes, [end[:3] for end in ends], max(end[3] for end in ends))


@styled
def sampling_figure(gains: pd.DataFrame) -> Figure:
    """Figure 15: what uncertainty-aware sampling gains with one boundary point, per data set and task group, beside the paper (Table 5).

    `gains`: one row per metric and place with columns metric, place (data set, task group or "all"), paper, value, low, high (points).
    """
    places = [(name, task) for task, names in dataset_order().items() for name in [*names, task]] + [
        ("all", "all")
    ]
    positions = np.cumsum(
        [0] + [1.7 if places[i][1] != places[i + 1][1] else 1 for i in range(len(places) - 1)]
    )
    figure = new_figure(10.2, 5.6)
    for axes, metric in zip(figure.subplots(2, 1, sharex=True), METRICS):
        rows = gains[gains["metric"] == metric].set_index("place")
        for x, (place, task) in zip(positions, places):
            if place not in rows.index:
                continue
            row, average = rows.loc[place], place in GROUPS
            colour = "#0072B2" if average else "#7FB8DA"
            axes.bar(x - 0.2, row["value"], 0.4, color=colour)
            if np.isfinite(row["low"]):
                axes.errorbar(
                    x - 0.2,
                    row["value"],
                    [[row["value"] - row["low"]], [row["high"] - row["value"]]],
                    ecolor="#222222",
                    elinewidth=0.8,
                    capsize=1.8,
                    capthick=0.8,
                )
            axes.bar(
                x + 0.2,
                row["paper"],
                0.4,
                facecolor="white",
                edgecolor="#4D4D4D",
                linewidth=0.9,
                hatch="////" if average else None,
            )
        axes.axhline(0, color="#222222", linewidth=0.8)
        axes.set_ylabel(f"gain in {metric} (points)")
        axes.set_xlim(positions[0] - 0.8, positions[-1] + 0.8)
        axes.set_xticks(
            positions,
            [f"mean {place}" if place in GROUPS else place for place, _ in places],
            rotation=38,
            ha="right",
            rotation_mode="anchor",
        )
        for text, (place, _) in zip(axes.get_xticklabels(), places):
            text.set_fontweight("bold" if place in GROUPS else "normal")
    handles = [
        Patch(color="#0072B2", label="micro, ours (95 % interval)"),
        Patch(facecolor="white", edgecolor="#4D4D4D", label="paper"),
    ]
    figure.axes[0].legend(
        handles=handles,
        frameon=False,
        loc="lower right",
        ncols=2,
        fontsize=8,
        bbox_to_anchor=(1, 0.98),
        borderaxespad=0,
    )
    figure.suptitle(
        "Figure 15. SUM − SUM w/o uncertainty sampling, one boundary point",
        x=0.01,
        ha="left",
        fontsize=10.5,
        fontweight="bold",
    )
    return figure


@styled
def panel(rows: Sequence[Mapping]) -> Figure:
    """Picture panel with columns image, SAM, uncertainty map, SUM, truth; one row per example.

    Each row: "image" (H, W, 3) uint8, "sam", "sum", "truth" (H, W) bool, "uncertainty" (H, W) float in [0, 1]; optional "point" (x, y) pixels and "name" (str).
    Masks are drawn over the greyed image; the IoU with the truth stands below the two predictions. Raises ValueError where sizes differ.
    """
    titles = {
        "image": "Image and prompt",
        "sam": "SAM",
        "uncertainty": "Uncertainty",
        "sum": "SUM",
        "truth": "Truth",
    }
    figure = new_figure(8.6, 1.78 * len(rows) + 0.35)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for r, row in enumerate(rows):
        sizes = {key: np.shape(row[key])[:2] for key in titles}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"panel row {row.get('name', r)}: pictures of different size {sizes}")
        for axes, (key, title) in zip(grid[r], titles.items()):
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[["top", "right"]].set_visible(True)
            for spine in axes.spines.values():
                spine.set(color="#BBBBBB", linewidth=0.6)
            shown = axes.imshow(
                _picture(key, row),
                **({"cmap": "magma", "vmin": 0, "vmax": 1} if key == "uncertainty" else {}),
            )
            if key in ("sam", "sum"):
                axes.set_xlabel(f"IoU {100 * _iou(row[key], row['truth']):.0f}", fontsize=7.5, labelpad=2)
            if r == 0:
                axes.set_title(title, fontweight="bold", pad=4)
            if key == "uncertainty" and r == len(rows) - 1:
                bar = figure.colorbar(
                    shown, ax=axes, location="bottom", ticks=[0, 0.5, 1], shrink=0.85, aspect=22, pad=0.03
                )
                bar.outline.set_linewidth(0.5)
                bar.ax.tick_params(labelsize=6.5, length=1.5, pad=1)
        if "point" in row:
            grid[r, 0].plot(
                *row["point"],
                marker="*",
                markersize=9,
                color="#F0E442",
                markeredgecolor="black",
                markeredgewidth=0.7,
            )
        grid[r, 0].set_ylabel(row.get("name", ""), fontsize=7.5)
    return figure


def _picture(key: str, row: Mapping) -> np.ndarray:
    """The array to show: image and uncertainty as they are, masks in their colour over the greyed image, (H, W, 3) float in [0, 1]."""
    if key in ("image", "uncertainty"):
        return np.asarray(row[key])
    colours = {"sam": "#D55E00", "sum": "#0072B2", "truth": "#009E73"}
    grey = np.asarray(row["image"], float).mean(-1, keepdims=True).repeat(3, -1) / 255
    base, colour = 0.55 + 0.45 * grey, np.array(matplotlib.colors.to_rgb(colours[key]))
    return np.where(np.asarray(row[key], bool)[..., None], 0.22 * base + 0.78 * colour, base)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


@styled
def certainty_vs_correctness(bins: Sequence[Mapping], threshold: float = 0.6) -> Figure:
    """How often a pixel of SAM's mask is right, by its certainty c, and how many pixels have that certainty (METHOD.md section 3).

    `bins`: dicts with "low", "high" (certainty), "pixels", "correct" (counts), in order; `threshold` is theta of the UA-dice loss.
    """
    low, high, pixels, correct = (
        np.array([b[key] for b in bins], float) for key in ("low", "high", "pixels", "correct")
    )
    figure = new_figure(4.6, 4.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
    share, middle = (
        np.divide(100 * correct, pixels, out=np.full_like(pixels, np.nan), where=pixels > 0),
        (low + high) / 2,
    )
    top.plot(middle, share, color="#0072B2", marker="o")
    top.axhline(50, color="#999999", linewidth=0.7, linestyle=(0, (2, 2)))
    top.set(ylabel="correct pixels (%)", ylim=(0, 104))
    for chosen, x, y, align in (
        (low >= threshold - 1e-9, 1.0, 8, "right"),
        (low < threshold - 1e-9, 0.0, 92, "left"),
    ):
        if pixels[chosen].sum():
            value = 100 * correct[chosen].sum() / pixels[chosen].sum()
            side = f"c > {threshold:g}" if align == "right" else f"c ≤ {threshold:g}"
            top.text(x, y, f"{side}: {value:.1f} % correct", ha=align, color="#222222", fontweight="bold")
    bottom.bar(middle, 100 * pixels / max(pixels.sum(), 1), width=(high - low) * 0.9, color="#7FB8DA")
    bottom.set(
        ylabel="pixels (%)",
        yscale="log",
        xlabel="certainty  c = 1 − |sigmoid(s) − sigmoid(r)|",
        xlim=(-0.02, 1.02),
    )
    bottom.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    for axes in (top, bottom):
        axes.axvline(threshold, color="#D55E00", linewidth=1)
    top.annotate(
        f"θ = {threshold:g}", (threshold, 102), (4, 0), textcoords="offset points", color="#D55E00", va="top"
    )
    return figure


@styled
def refined_vs_sam_by_level(levels: Mapping[str, Mapping]) -> Figure:
    """Figure 9: each mask's IoU (above) and boundary IoU (below) before and after refinement, by level.

    `levels[level]`: equally long lists "sam_iou", "refined_iou", "sam_biou", "refined_biou" in [0, 1]. Points above the diagonal got better.
    """
    figure = new_figure(2.45 * len(levels) + 0.5, 5.2)
    grid = figure.subplots(2, len(levels), squeeze=False, sharex=True, sharey=True)
    for c, (level, masks) in enumerate(levels.items()):
        for axes, (key, name) in zip(grid[:, c], (("iou", "IoU"), ("biou", "boundary IoU"))):
            before, after = (
                100 * np.asarray(masks[f"sam_{key}"], float),
                100 * np.asarray(masks[f"refined_{key}"], float),
            )
            axes.plot([0, 100], [0, 100], color="#999999", linewidth=0.8, zorder=1)
            axes.scatter(before, after, s=9, color="#0072B2", alpha=0.35, linewidth=0, zorder=2)
            axes.plot(
                before.mean(),
                after.mean(),
                marker="P",
                color="#D55E00",
                markeredgecolor="white",
                markersize=9,
                zorder=3,
            )
            axes.set(
                xlim=(0, 101),
                ylim=(0, 101),
                aspect="equal",
                xticks=range(0, 101, 25),
                yticks=range(0, 101, 25),
            )
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
            axes.text(
                4,
                96,
                f"mean {before.mean():.1f} → {after.mean():.1f}",
                va="top",
                color="#B34700",
                fontweight="bold",
                bbox=box,
            )
            axes.text(
                97,
                5,
                f"better {100 * np.mean(after > before):.0f} %, worse {100 * np.mean(after < before):.0f} %",
                ha="right",
                bbox=box,
            )
            if c == 0:
                axes.set_ylabel(f"refined mask: {name} (%)")
        grid[0, c].set_title(GROUP_TITLES.get(level, level), fontweight="bold")
        grid[1, c].set_xlabel("SAM's mask (%)")
    return figure


@styled
def rims_figure(shares: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """How much of the ring around parts is painted (`sumlib.analysis.rims.painted_share`), a line a run of ``names`` {run: shown as}, a column a side."""
    sides = list(dict.fromkeys(shares["side"]))
    figure = new_figure(6.6, 0.9 + 0.3 * len(names))
    for axes, side in zip(figure.subplots(1, len(sides), sharey=True), sides):
        rows = shares[shares["side"] == side].set_index("run").loc[list(names)]
        for y, (run, row) in enumerate(rows.iterrows()):
            colour = "#4D4D4D" if run == "sam" else "#0072B2"
            axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.5)
            axes.plot(row["share"], y, marker="o", color=colour)
            axes.annotate(
                f"{row['share']:.1f}",
                (row["high"], y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axes.set(
            yticks=range(len(rows)),
            yticklabels=list(names.values()),
            xlabel="painted by mistake (% of the ring)",
            ylim=(len(rows) - 0.5, -0.5),
            xlim=(0, None),
        )
        axes.set_title(f"towards the {side}", fontweight="bold")
        axes.grid(axis="x")
        axes.margins(x=0.15)
    return figure
