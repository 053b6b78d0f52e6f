"""Tests and notebooks run on the profile `smoke`, and may not change results/.

The environment is set when this file is loaded, before any test imports sumlib: the kernels that nbval starts and the
workers of pytest-xdist inherit it.
"""

import os
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "results"

os.environ["SUM_PROFILE"] = "smoke"
os.environ["TQDM_DISABLE"] = "1"
os.environ["SUM_PROCESSES"] = "2"  # on one core, too: what is said of two processes shall be tested with two
os.environ["DVC_NO_ANALYTICS"] = "1"


def pytest_configure(config):
    """Remember what stands in results/ before the tests."""
    config.results_before = _state()


def pytest_sessionfinish(session):
    """Fail where a test or a notebook wrote into results/: only `dvc repro` may."""
    before, after = session.config.results_before, _state()
    changed = sorted(
        str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
    if changed and not hasattr(session.config, "workerinput"):
        pytest.exit(
            f"the tests changed results/: {', '.join(changed)}; restore with `git checkout results`",
            returncode=1,
        )


def _state() -> dict[Path, int]:
    """Time of change in ns of every file in results/."""
    return {
        path.relative_to(RESULTS.parent): path.stat().st_mtime_ns
        for path in RESULTS.rglob("*")
        if path.is_file()
    }
