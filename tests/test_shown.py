"""The results that figures wait for: a run of a model that no figure shows changes none of them."""

from dataclasses import replace

import pytest

from sumlib.config.params import load_config
from sumlib.figures.shown import MODELS, copy_shown

RUNS = load_config().runs


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def evaluated(tmp_path):
    for name in RUNS:
        (tmp_path / f"{name}.parquet").write_text(name)
    return tmp_path


def test_only_runs_of_models_in_figures_are_copied(evaluated):
    names = copy_shown(RUNS, evaluated, evaluated / "shown")
    assert {"sam", "sum-medium", "vanilla-small"} <= set(names) and "u2pl-small" not in names
    assert contents(evaluated / "shown") == {f"{name}.parquet": name.encode() for name in names}
    assert {RUNS[name].model for name in names} == MODELS, "a figure shows a model that no run trains"


def test_a_new_run_of_another_model_changes_nothing_and_a_new_seed_is_added(evaluated):
    copy_shown(RUNS, evaluated, evaluated / "shown")
    before = contents(evaluated / "shown")
    more = RUNS | {"new": replace(RUNS["sum-medium"], name="new", model="SUM of our own")}
    (evaluated / "new.parquet").write_text("new")
    copy_shown(more, evaluated, evaluated / "shown")
    assert contents(evaluated / "shown") == before
    copy_shown(
        RUNS | {"new": replace(RUNS["sum-medium"], name="new", seed=9)}, evaluated, evaluated / "shown"
    )
    assert contents(evaluated / "shown").keys() - before.keys() == {"new.parquet"}


def test_missing_results_are_named(evaluated):
    (evaluated / "sam.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="results of sam: run `dvc repro evaluate_baseline@sam`"):
        copy_shown(RUNS, evaluated, evaluated / "shown")
    (evaluated / "sam.parquet").write_text("sam")
    (evaluated / "sum-medium.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="results of sum-medium: run `dvc repro evaluate@sum-medium`"):
        copy_shown(RUNS, evaluated, evaluated / "shown")
