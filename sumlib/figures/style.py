"""The common look of all figures: colours and markers, fonts, and how figures are saved.

Colours are safe for colour-blind people (Okabe and Ito), and markers tell apart what colours may not. A
figure is the same bytes on every run.
"""

import functools
import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from sumlib.data.tasks import TASKS

Key = tuple[str, str]
"""(model, train_set)."""
GROUPS = (*TASKS, "all")
GROUP_TITLES = {"salient": "Salient objects", "entity": "Entities", "part": "Parts", "all": "All sets"}
GREY, BLUE, ORANGE, GREEN, YELLOW = "#4D4D4D", "#0072B2", "#D55E00", "#009E73", "#F0E442"
PALE = "#7FB8DA"
"""Blue in the background."""
INK = "#222222"
"""Of zero lines and error bars."""
SAM, SUM = ("SAM", "none"), ("SUM", "FT-Medium")
LOOKS: dict[Key, tuple[str, str]] = {
    SAM: (GREY, "o"),
    ("Human-annotation-only", "FT-Small"): (ORANGE, "v"),
    ("HQ-SAM", "FT-Small"): (ORANGE, "v"),
    ("Vanilla", "FT-Medium"): ("#E69F00", "s"),
    ("Vanilla (HQ-SAM arch.)", "FT-Small"): ("#E69F00", "s"),
    ("Mask Refinement", "FT-Medium"): ("#CC79A7", "h"),
    ("SUM w/o Task Prompt", "FT-Medium"): ("#56B4E9", "^"),
    ("SUM Continuous TP", "FT-Medium"): (GREEN, "P"),
    ("SUM", "FT-Small"): (PALE, "D"),
    SUM: (BLUE, "D"),
    ("SUM", "FT-Large"): ("#1B2A6B", "D"),
    ("SUM (HQ-SAM arch.)", "FT-Small"): (BLUE, "D"),
}
"""The colour and the marker of a model, the same in every figure. SUM is a diamond; its training sets differ
in shade."""
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


def name_of(key: Key) -> str:
    """A model as legends call it.

    >>> name_of(("SAM", "none")), name_of(("SUM", "FT-Medium"))
    ('SAM', 'SUM, FT-Medium')
    """
    model, train_set = key
    return model if train_set == "none" else f"{model}, {train_set}"


class Shown(Figure):
    """A figure that a notebook shows in the common style, without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        save(self, file, dpi=110)
        return file.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, in the common style."""
    return Shown(figsize=(width, height), layout="constrained")


def heading(figure: Figure, text: str) -> None:
    """Write ``text`` over the figure, to the left."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def legend_below(figure: Figure, lines: dict[str, object]) -> None:
    """A legend {name: line} in one row below the figure."""
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside lower center",
        ncols=len(lines) or 1,
        frameon=False,
        fontsize=8,
    )


def bare(*places) -> None:
    """Hide the upper and right spine of axes that were not made under `styled`."""
    for axes in places:
        axes.spines[["top", "right"]].set_visible(False)


def styled(draw):
    """Decorator: run ``draw`` under `STYLE`."""

    @functools.wraps(draw)
    def inside(*args, **options):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return inside


def save(figure: Figure, path: Path | io.BytesIO, dpi: int = 200) -> Path | io.BytesIO:
    """Write ``figure`` as PNG, to a path or a file in memory, without dates or versions in it."""
    if not isinstance(path, io.BytesIO):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})
    return path
