"""Tests and notebooks run on the profile `smoke`, in a small world of their own, and may not change results/.

The environment is set when this file is loaded, before any test imports sumlib: the kernels that nbval
starts and the workers of pytest-xdist inherit it. The world lies in a temporary folder that the first
notebook fills (`sumlib.pipeline.workspace`), so tests that read none of it do not wait for it.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "results"

os.environ["SUM_PROFILE"] = "smoke"
os.environ["TQDM_DISABLE"] = "1"
os.environ["SUM_PROCESSES"] = "2"  # on one core, too: what is said of two processes shall be tested with two
os.environ["DVC_NO_ANALYTICS"] = "1"


def pytest_configure(config):
    """Remember what stands in results/ before the tests, and name the folder of the small world."""
    config.results_before = _state()
    if not hasattr(config, "workerinput"):  # workers of xdist inherit it
        config.small_world = Path(tempfile.mkdtemp(prefix="sum-tests-"))
        os.environ["SUM_WORKSPACE"] = str(config.small_world / "world")


def pytest_unconfigure(config):
    """Remove the small world and the copies that kernels made of it."""
    if hasattr(config, "small_world"):
        shutil.rmtree(config.small_world, ignore_errors=True)


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
