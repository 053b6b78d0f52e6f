"""Where parts are painted too wide."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from sumlib.figures.style import LOOKS, Key, name_of, new_figure, styled


@styled
def rims_figure(shares: pd.DataFrame, models: Mapping[str, Key]) -> Figure:
    """How much of the ring around parts is painted (`sumlib.analysis.rims.painted_share`).

    A line for each of ``models`` {run: (model, train_set)}, a column a side of the ring.
    """
    sides = list(dict.fromkeys(shares["side"]))
    figure = new_figure(6.6, 0.9 + 0.3 * len(models))
    for axes, side in zip(figure.subplots(1, len(sides), sharey=True), sides):
        rows = shares[shares["side"] == side].set_index("run").loc[list(models)]
        for y, (row, key) in enumerate(zip(rows.itertuples(), models.values())):
            colour, marker = LOOKS[key]
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1.5)
            axes.plot(row.share, y, marker=marker, color=colour)
            axes.annotate(
                f"{row.share:.1f}",
                (row.high, y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axes.set(
            yticks=range(len(rows)),
            yticklabels=[name_of(key) for key in models.values()],
            xlabel="painted by mistake (% of the ring)",
            ylim=(len(rows) - 0.5, -0.5),
            xlim=(0, None),
        )
        axes.set_title(f"towards the {side}", fontweight="bold")
        axes.grid(axis="x")
        axes.margins(x=0.15)
    return figure
