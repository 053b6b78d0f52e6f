"""Where a notebook reads and writes: the repository, or under the profile `smoke` a copy of a small world.

The world (`sumlib.pipeline.smoke`) holds what earlier stages would have left. It is built by a process of its
own, so that a notebook does not depend on the code that builds it.
"""

import atexit
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sumlib.base.paths import ARTIFACTS, RESULTS, ROOT
from sumlib.config.params import Config, load_config

VARIABLE = "SUM_WORKSPACE"
"""Environment variable that names the prepared world; it is built there by the first who needs it."""


def open_workspace(config: Config) -> tuple[Path, Path]:
    """(folder for large outputs, folder for tables, figures and metrics) of the configuration's profile.

    Under the profile smoke both lie in a temporary copy of the small world, removed at exit: nothing in the
    repository is touched, and notebooks that run side by side do not see each other's outputs. Raises
    RuntimeError if the world cannot be built.
    """
    if config.profile != "smoke":
        return ARTIFACTS, RESULTS
    given = os.environ.get(VARIABLE)
    home = Path(given).parent if given else None
    folder = Path(tempfile.mkdtemp(prefix="sum-smoke-", dir=home))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if given:
        shutil.copytree(prepared(Path(given)), folder, dirs_exist_ok=True)
    else:
        print(f"profile smoke: a small world is built in {folder}; name one in {VARIABLE} to keep it")
        folder = prepared(folder / "world")
    return folder / "artifacts", folder / "results"


def prepared(world: Path) -> Path:
    """``world``, built if it is not there; of several processes that ask, one builds and the others wait."""
    world.parent.mkdir(parents=True, exist_ok=True)
    with open(world.with_name(world.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not world.is_dir():
            command = [sys.executable, "-m", "sumlib.pipeline.smoke", str(world.resolve())]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the small world could not be built:\n{done.stderr.strip()}")
    return world


def workspace(profile: str | None = None) -> tuple[Path, Path]:
    """(folder of the per-mask results, folder for tables and figures) of a profile."""
    artifacts, results = open_workspace(load_config(profile))
    return artifacts / "evaluate", results
