"""What goes beyond the paper: compared with the right SUM, and nothing made up where a run is missing."""

import numpy as np
import pytest
from test_report import results

from sumlib.config.params import load_config
from sumlib.report.beyond import BEYOND, beyond_markdown, beyond_table
from sumlib.report.intervals import Bootstrap

RUNS = {
    "sum-medium": ("SUM", "FT-Medium", 0),
    "again": ("SUM second round", "FT-Medium", 0),
    "sum-small": ("SUM", "FT-Small", 0),
}


@pytest.fixture(scope="module")
def table():
    return beyond_table(Bootstrap(results(RUNS, rounds=(1, 3)), np.random.default_rng(0), 100), rounds=(1, 3))


def test_differences_are_to_sum_on_the_same_masks(table):
    bootstrap = Bootstrap(results(RUNS, rounds=(1, 3)), np.random.default_rng(0), 100)
    assert (
        set(table["model"]) == {"SUM second round"} and len(table) == 2 * 2 * 4
    )  # what was not evaluated is left out
    row = table.query("rounds == 3 and metric == 'mBIoU' and task == 'part'").iloc[0]
    expected = bootstrap.compare(
        {("SUM second round", "FT-Medium"): 1.0, ("SUM", "FT-Medium"): -1.0},
        "part",
        prompt="point",
        rounds=3,
        metric="mBIoU",
    )
    assert (row["difference"], row["low"], row["high"]) == (expected.value, expected.low, expected.high)


def test_the_report_marks_what_is_more_than_chance(table):
    text = beyond_markdown(table.assign(low=0.5, high=1.5, difference=1.0))
    assert "SUM second round − SUM FT-Medium" in text and text.count("**+1.0** (+0.5 … +1.5)") == len(table)
    assert "**+" not in beyond_markdown(table.assign(low=-0.5, high=1.5, difference=1.0)).split("|", 1)[1]
    assert beyond_markdown(table[:0]).startswith("# Beyond the paper")


def test_every_model_beyond_the_paper_has_a_run():
    runs = {(run.model, run.train_set) for run in load_config("micro").runs.values()}
    assert {*BEYOND, *BEYOND.values()} <= runs
