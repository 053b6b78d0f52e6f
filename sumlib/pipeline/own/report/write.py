"""Writes the report of a project from its results; nothing is computed but means and intervals."""

import shutil
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from sumlib.figures.style import save
from sumlib.pipeline.own.evaluation import compared
from sumlib.pipeline.own.report import figures, measured, particulars, shares
from sumlib.pipeline.own.report.document import Document, Section, write_html, write_markdown
from sumlib.pipeline.own.report.lead import first_agreement, headline
from sumlib.pipeline.own.report.results import FOUNDATION, HUMAN, TUNED, Results, read_results, save_results
from sumlib.pipeline.own.report.snippets import weights_section

RESULTS = "results"
"""Folder beside the report that holds what it is made of."""
CHARTS = "charts"


def write_report(folder: Path | str, results: Results | None = None) -> list[Path]:
    """Write ``report.md`` and ``report.html`` into ``folder``, and ``results`` into `RESULTS` below it.

    Without ``results`` those that lie there are used: the report is written again and nothing is computed.
    Pictures of examples must lie in `RESULTS` already (`draw_examples` was given that folder). The HTML file
    has everything inside; the Markdown links the pictures. Returns both files. Raises: as `read_results`.
    """
    folder = Path(folder)
    if results is None:
        results = read_results(folder / RESULTS)
    else:
        save_results(results, folder / RESULTS)
    document = report_document(results, folder / RESULTS)
    return [write_markdown(document, folder / "report.md"), write_html(document, folder / "report.html")]


def report_document(results: Results, folder: Path) -> Document:
    """The page; its charts are drawn into `CHARTS` below ``folder``."""
    shutil.rmtree(folder / CHARTS, ignore_errors=True)
    chart = lambda name, draw: _chart(folder / CHARTS / f"{name}.png", draw)
    found: list[Section | None] = [
        measured.held_out_section(results, chart("held-out", lambda: _gains(results))),
        measured.probe_section(results, chart("probe", lambda: _probe(results))),
        measured.extra_section(results),
        *particulars.example_sections(results, folder),
        shares.keep_section(results, chart("keep", lambda: _keep(results))),
        shares.learning_section(results, chart("learning-curve", lambda: _learning(results))),
        weights_section(results),
        particulars.data_section(results),
        particulars.skipped_section(results),
        particulars.stages_section(results),
        particulars.settings_section(results),
    ]
    lead = headline(results) or ["Nothing was measured: there are neither held-out masks nor a probe."]
    note = "Written by sumlib. Intervals: bootstrap over images, 2,000 draws, all masks of an image together."
    return Document(f"{results.name}: your SAM", lead, [one for one in found if one is not None], note)


def _chart(path: Path, draw: Callable[[], Figure | None]) -> Path | None:
    figure = draw()
    return None if figure is None else save(figure, path, dpi=150)


def _gains(results: Results) -> Figure | None:
    table = results.held_out
    if table is None or table["round"].nunique() < 2 or not {FOUNDATION, TUNED} <= set(table["model"]):
        return None
    models = [model for model in (HUMAN, TUNED) if model in set(table["model"])]
    return figures.gains_figure({model: compared(table, model, FOUNDATION) for model in models})


def _probe(results: Results) -> Figure | None:
    found = {model: first_agreement(results, model) for model in (HUMAN, TUNED)}
    if found[TUNED] is None:
        return None
    return figures.probe_figure({model: rows for model, rows in found.items() if rows is not None})


def _keep(results: Results) -> Figure | None:
    curve = results.keep_curve
    return None if curve is None or len(curve) < 2 else figures.keep_figure(curve)


def _learning(results: Results) -> Figure | None:
    curve = results.learning_curve
    return None if curve is None or curve["masks"].nunique() < 2 else figures.learning_figure(curve)
