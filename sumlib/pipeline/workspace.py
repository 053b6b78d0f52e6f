"""Where a notebook writes: the repository, or under the profile `smoke` a temporary folder."""

import atexit
import shutil
import tempfile
from pathlib import Path

from sumlib.base.paths import ARTIFACTS, RESULTS
from sumlib.config.params import Config


def open_workspace(config: Config) -> tuple[Path, Path]:
    """(folder for large outputs, folder for tables, figures and metrics) of the configuration's profile.

    Under the profile smoke both are empty and temporary, removed at exit: nothing in the repository is touched.
    """
    if config.profile != "smoke":
        return ARTIFACTS, RESULTS
    folder = Path(tempfile.mkdtemp(prefix="sum-smoke-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "artifacts", folder / "results"
