"""results/dev/choices.csv: a row for each choice of a number, with candidates, scores and what was taken."""

import csv
from datetime import date

import pytest

from sumlib.base.paths import RESULTS

COLUMNS = ["date", "choice", "candidates", "dev_score", "taken", "reason"]


def read_rows() -> tuple[list[str], list[list[str]]]:
    with (RESULTS / "dev" / "choices.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


HEADER, ROWS = read_rows()


def test_the_table_has_its_columns_and_rows():
    assert HEADER == COLUMNS
    assert ROWS


@pytest.mark.parametrize("row", ROWS, ids=[row[1][:40] for row in ROWS])
def test_a_row_is_complete(row):
    assert len(row) == len(COLUMNS), row
    day, choice, candidates, scores, taken, reason = row
    date.fromisoformat(day)
    assert choice.strip() and reason.strip()
    tried = candidates.split(" | ")
    assert taken in tried, f"{taken!r} was taken, but {tried} were tried"
    if scores:
        numbers = [float(score) for score in scores.split(" | ")]
        assert len(numbers) == len(tried), "a score for each candidate, in their order"


def test_the_oldest_come_first():
    days = [row[0] for row in ROWS]
    assert days == sorted(days)


def test_the_page_explains_every_column():
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    for column in COLUMNS:
        assert f"| `{column}` |" in page, f"results/README.md does not explain the column {column}"
