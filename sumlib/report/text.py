"""How numbers and tables are written for people and for files."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sumlib.base.files import write_text


def fixed(value: float, digits: int = 1, sign: bool = False) -> str:
    """`value` with `digits` decimals; no negative zero; "–" for NaN.

    >>> fixed(-0.04), fixed(1.25, 2, sign=True), fixed(float("nan"))
    ('0.0', '+1.25', '–')
    """
    if pd.isna(value):
        return "–"
    return f"{round(float(value), digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def interval_text(value: float, low: float, high: float) -> str:
    """A difference with its interval.

    >>> interval_text(1.25, -0.04, 3)
    '+1.2 (+0.0 to +3.0)'
    """
    return f"{fixed(value, sign=True)} ({fixed(low, sign=True)} to {fixed(high, sign=True)})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A Markdown table: the columns `text` to the left, the others to the right."""
    sides = ["---" if i in text else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, sides, *rows))


def write_csv(frame: pd.DataFrame, path: Path, digits: int = 2) -> Path:
    """Write `frame` with `digits` decimals and "\\n" line ends, the same bytes for the same values; whole or
    not at all."""
    rounded = frame.copy()
    for column in rounded.select_dtypes("float"):
        rounded[column] = rounded[column].round(digits) + 0.0
    write_text(path, rounded.to_csv(index=False, float_format=f"%.{digits}f", lineterminator="\n"))
    return Path(path)


MICRO_PROFILES = ("micro", "smoke")


def shown(dataset: str, profile: str) -> str:
    """How people read a data set's name: the micro world's sets are not the real ones of the same name.

    Files for programs (CSV, Parquet) keep the registry's names.

    >>> shown("COIFT", "micro"), shown("COIFT", "paper")
    ('micro-COIFT', 'COIFT')
    """
    return f"micro-{dataset}" if profile in MICRO_PROFILES else dataset
