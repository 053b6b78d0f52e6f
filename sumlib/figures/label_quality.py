"""Figures of pseudo-label quality (`sumlib.report.label_quality`): 44-47 and beyond."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sumlib.figures.style import BLUE, GREEN, GREY, GROUP_TITLES, INK, ORANGE, new_figure, styled
from sumlib.report.label_quality import COVERED, SCORES, SHARP, Separation, correction_curve

SAM, REFINED, GOOD, BAD = GREY, BLUE, GREEN, ORANGE
LEVEL_NAMES = GROUP_TITLES | {"none": "Nothing"}
KINDS = {
    "boundary and coverage right": "#009E73",
    "only coverage right": "#56B4E9",
    "only boundary right": "#E69F00",
    "both wrong": "#B8B8B8",
}


@styled
def survival_figure(masks: pd.DataFrame) -> Figure:
    """Figure 44: the share of pseudo-labels whose IoU (coverage) and boundary IoU are at least x, of SAM's
    and of the refined masks."""
    figure = new_figure(6.8, 2.9)
    for axes, (key, name, limit) in zip(
        figure.subplots(1, 2, sharey=True),
        (("iou", "IoU with the true mask", COVERED), ("biou", "boundary IoU", SHARP)),
    ):
        shares = {prefix: 100 * float((masks[prefix + key] >= limit).mean()) for prefix in ("", "refined_")}
        for prefix, label, colour in (("", "SAM", SAM), ("refined_", "refined", REFINED)):
            values = np.sort(masks[prefix + key].to_numpy())
            axes.plot(
                values,
                100 * (1 - np.arange(len(values)) / len(values)),
                color=colour,
                linestyle="-" if prefix else (0, (4, 1.5)),
            )
            axes.plot(limit, shares[prefix], marker="o" if prefix else "s", color=colour)
            above = shares[prefix] == max(shares.values())
            axes.annotate(
                f"{label} {shares[prefix]:.0f} %",
                (limit, shares[prefix]),
                (5, 5) if above else (-5, -5),
                textcoords="offset points",
                color=colour,
                ha="left" if above else "right",
                va="bottom" if above else "top",
                fontweight="bold",
            )
        axes.axvline(limit, color="#999999", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        axes.set(xlabel=f"{name}: at least", xlim=(0, 1), ylim=(0, 103))
    figure.axes[0].set_ylabel("pseudo-labels (%)")
    return figure


@styled
def levels_figure(masks: pd.DataFrame, judged: pd.DataFrame) -> Figure:
    """Figure 45: which level's true mask the pseudo-labels meet, and what is right about them; SAM's above,
    refined below each other."""
    levels = [level for level in LEVEL_NAMES if level in set(masks["level"])]
    figure = new_figure(6.8, 0.9 + 0.5 * len(levels))
    axes = figure.subplots()
    for y, level in enumerate(levels):
        chosen = (masks["level"] == level).to_numpy()
        for offset, prefix in ((-0.19, ""), (0.19, "refined_")):
            coverage, boundary = (
                judged[prefix + name].to_numpy()[chosen] for name in ("coverage", "boundary")
            )
            left = 0.0
            for (kind, colour), part in zip(
                KINDS.items(),
                (coverage & boundary, coverage & ~boundary, ~coverage & boundary, ~coverage & ~boundary),
            ):
                width = 100 * part.sum() / len(masks)
                axes.barh(
                    y + offset,
                    width,
                    0.34,
                    left=left,
                    color=colour,
                    label=kind if y == 0 and not prefix else None,
                )
                left += width
            axes.annotate(
                "refined" if prefix else f"SAM   {100 * chosen.mean():.0f} %",
                (left, y + offset),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set(
        yticks=range(len(levels)),
        yticklabels=[LEVEL_NAMES[level] for level in levels],
        ylim=(len(levels) - 0.5, -0.5),
        xlabel="pseudo-labels (% of all)",
    )
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.14)
    axes.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.45, 1), ncols=4)
    return figure


@styled
def scores_figure(masks: pd.DataFrame, good: np.ndarray, tests: Mapping[str, Separation]) -> Figure:
    """Figure 46: predicted IoU, stability and mean certainty of good and bad pseudo-labels, with medians and
    the rank test."""
    figure = new_figure(7.6, 2.7)
    for axes, (key, name) in zip(figure.subplots(1, len(SCORES)), SCORES.items()):
        values = masks[key].to_numpy()
        edges = np.linspace(*np.percentile(values, [0.5, 100]), 31)
        for part, colour, label in ((values[~good], BAD, "wrong"), (values[good], GOOD, "right")):
            if len(part):
                axes.hist(
                    part.clip(edges[0]),
                    bins=edges,
                    weights=np.full(len(part), 100 / len(part)),
                    histtype="stepfilled",
                    color=colour,
                    alpha=0.45,
                    label=label,
                )
                axes.axvline(
                    np.median(part),
                    color=colour,
                    linewidth=1.3,
                    linestyle="-" if label == "right" else (0, (3, 2)),
                )
        test = tests[key]
        axes.set(xlabel=name)
        axes.set_title(
            f"AUC {test.auc:.2f}, {'p < 0.001' if test.p < 0.001 else f'p = {test.p:.3f}'}", fontsize=8
        )
    figure.axes[0].set_ylabel("% of the right / wrong ones")
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


@styled
def refined_figure(changes: pd.DataFrame) -> Figure:
    """Figure 47: what refinement changes; ``changes`` has columns level, metric ("IoU", "boundary IoU"),
    value, low, high, better, worse (points and %)."""
    metrics, levels = list(dict.fromkeys(changes["metric"])), list(dict.fromkeys(changes["level"]))
    figure = new_figure(6.8, 0.9 + 0.34 * len(levels))
    for axes, metric in zip(figure.subplots(1, len(metrics), sharey=True), metrics):
        rows = changes[changes["metric"] == metric].set_index("level").loc[levels]
        axes.axvline(0, color=INK, linewidth=0.8)
        for y, row in enumerate(rows.itertuples()):
            axes.plot([row.low, row.high], [y, y], color=REFINED, linewidth=1.6)
            axes.plot(row.value, y, marker="o", color=REFINED)
            axes.annotate(
                f"{row.value:+.1f}  (better {row.better:.0f} %, worse {row.worse:.0f} %)",
                (row.value, y),
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
            )
        low, high = min(0.0, rows["low"].min()), max(0.0, rows["high"].max())
        axes.set_xlim(low - 0.55 * (high - low), high + 0.55 * (high - low))  # room for the words
        axes.set(
            yticks=range(len(levels)),
            yticklabels=[LEVEL_NAMES[level] for level in levels],
            ylim=(len(levels) - 0.5, -0.6),
            xlabel="refined − SAM (points)",
        )
        axes.set_title(metric, fontweight="bold")
        axes.grid(axis="x")
    return figure


@styled
def calibration_figure(bins: pd.DataFrame, recalibrated: np.ndarray, errors: tuple[float, float]) -> Figure:
    """Reliability diagram: share of right pixels by stated probability, the certainty itself and
    recalibrated; ``errors`` are both's calibration errors."""
    figure = new_figure(4.4, 4.0)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="#999999", linewidth=0.8, linestyle=(0, (2, 2)))
    seen = (bins["pixels"] > 0).to_numpy()
    right = (100 * bins["correct"] / bins["pixels"].clip(lower=1)).to_numpy()[seen]
    series = (
        ("certainty as it is", bins["certainty"].to_numpy(), SAM, "s", errors[0]),
        ("recalibrated on development images", recalibrated, REFINED, "o", errors[1]),
    )
    for label, stated, colour, marker, error in series:
        axes.plot(
            100 * stated[seen],
            right,
            color=colour,
            marker=marker,
            linewidth=1.1,
            label=f"{label}: error {100 * error:.2f} points",
        )
    axes.set(
        xlabel="stated probability that the pixel is right (%)",
        ylabel="right pixels (%)",
        xlim=(-2, 102),
        ylim=(-2, 102),
        aspect="equal",
    )
    axes.grid(axis="both")
    axes.legend(frameon=False, fontsize=7, loc="lower right")
    return figure


@styled
def correction_figure(
    quality: Mapping[str, np.ndarray],
    orders: Mapping[str, Mapping[str, np.ndarray]],
    advantages: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Mean quality of the pseudo-labels when a share of them is corrected by hand, a panel a metric, a line
    an order.

    ``quality[metric]`` (N,) in [0, 1]; ``orders[metric][name]`` (N,) indices, first to correct first;
    ``advantages[metric][name]`` as `sumlib.report.label_quality.advantage`.
    """
    colours = {
        "certainty": "#0072B2",
        "predicted_iou": "#D55E00",
        "stability": "#CC79A7",
        "the truth (best possible)": "#4D4D4D",
    }
    figure = new_figure(7.6, 3.2)
    for axes, (metric, values) in zip(figure.subplots(1, len(quality)), quality.items()):
        x = np.linspace(0, 100, len(values) + 1)
        axes.plot(
            [0, 100],
            [100 * values.mean(), 100],
            color="#999999",
            linewidth=1,
            linestyle=(0, (2, 2)),
            label="random",
        )
        for name, order in orders[metric].items():
            best = name not in SCORES
            axes.plot(
                x,
                100 * correction_curve(values, order),
                color=colours[name],
                linewidth=1 if best else 1.6,
                linestyle=(0, (5, 2)) if best else "-",
                label=name if best else f"{SCORES[name]} (advantage {advantages[metric][name]:.2f})",
            )
        axes.set(
            xlabel="pseudo-labels corrected by hand (%)",
            ylabel=f"mean {metric} of the labels (%)",
            xlim=(0, 100),
        )
        axes.legend(frameon=False, fontsize=6.5, loc="lower right")
    return figure


@styled
def study_figure(shares: pd.DataFrame) -> Figure:
    """What raters said of SAM's and of refined masks; ``shares`` has columns question, who, value, low, high
    (%)."""
    questions, looks = (
        list(dict.fromkeys(shares["question"])),
        {"SAM": (SAM, "s", -0.12), "refined": (REFINED, "o", 0.12)},
    )
    figure = new_figure(5.6, 0.9 + 0.42 * len(questions))
    axes = figure.subplots()
    for who, (colour, marker, offset) in looks.items():
        rows = shares[shares["who"] == who].set_index("question").loc[questions]
        for y, row in enumerate(rows.itertuples()):
            axes.plot([row.low, row.high], [y + offset] * 2, color=colour, linewidth=1.5)
            axes.plot(
                row.value,
                y + offset,
                marker=marker,
                color=colour,
                linestyle="none",
                label=who if y == 0 else None,
            )
            axes.annotate(
                f"{row.value:.0f} %",
                (row.high, y + offset),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=colour,
            )
    axes.set(
        yticks=range(len(questions)),
        yticklabels=questions,
        ylim=(len(questions) - 0.5, -0.5),
        xlim=(0, 108),
        xlabel="yes (% of the answers)",
    )
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
