"""Where things are. Every path is resolved from the repository root, never from the working directory.

The package is meant to be installed in place (`pip install --no-deps -e .`, which `make env` does), so that
`ROOT` is the folder that holds `sumlib/`, `params.yaml` and `dvc.yaml`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params.yaml"  # every number: profiles and runs
SAMPLE = ROOT / "sample"  # raw micro data and the foundation checkpoint, in git
ARTIFACTS = ROOT / "artifacts"  # large outputs of the stages, in DVC's cache only
RESULTS = ROOT / "results"  # tables, figures and metrics, in git
NOTEBOOKS = ROOT / "notebooks"  # one notebook a stage
