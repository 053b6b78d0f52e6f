"""The results of the runs of params.yaml, no more and no fewer."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from sumlib.report.results import load_results


def load_runs(folder: Path, names: Collection[str]) -> pd.DataFrame:
    """Per-mask results of the runs ``names`` in ``folder``, as `load_results` gives them.

    What an earlier run of another name has left in the folder is left out: it would be averaged with others.

    Raises FileNotFoundError where a run has no file, and what `load_results` raises.
    """
    missing = [name for name in names if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks the results of {', '.join(missing)}: run `make repro`")
    results = load_results(folder)
    results = results[results["run"].isin(list(names))].reset_index(drop=True)
    for column in results.select_dtypes("category"):
        results[column] = results[column].cat.remove_unused_categories()
    return results
