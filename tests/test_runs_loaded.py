"""`load_runs`: the results of the runs that params.yaml names, whatever else lies in the folder."""

import pandas as pd
import pytest

from sumlib.report.results import COLUMNS
from sumlib.report.runs import load_runs


def write(folder, run, seed=0):
    row = dict.fromkeys(COLUMNS, 0) | {"run": run, "seed": seed, "dataset": "COIFT", "iou": 0.5, "biou": 0.5}
    row |= dict.fromkeys(("model", "train_set", "task", "image", "prompt", "setting"), "x")
    pd.DataFrame([row]).to_parquet(folder / f"{run}.parquet", index=False)


def test_what_a_renamed_run_has_left_is_not_read(tmp_path):
    for run in ("sam", "sum", "an-old-name"):
        write(tmp_path, run)
    results = load_runs(tmp_path, ["sam", "sum"])
    assert list(results["run"]) == ["sam", "sum"] and list(results["run"].cat.categories) == ["sam", "sum"]


def test_a_run_without_results_is_named(tmp_path):
    write(tmp_path, "sam")
    with pytest.raises(FileNotFoundError, match="lacks the results of sum: run `make repro`"):
        load_runs(tmp_path, ["sam", "sum"])
