"""The per-mask results that figures show: `python -m sumlib.figures.shown` copies them to artifacts/shown.

Stage `figures` waits for that folder and not for the results of every run, so that a new run of a model that
no figure shows leaves the figures alone.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from sumlib.base.paths import ARTIFACTS
from sumlib.config.params import load_config
from sumlib.config.runs import RunConfig
from sumlib.figures.ablation import SCHEMES, THETAS
from sumlib.figures.curves import CURVES
from sumlib.figures.rounds import ABLATION, SIZES
from sumlib.report.results import evaluation
from sumlib.report.sampling import WITH, WITHOUT

KEYS = (*SCHEMES, *ABLATION, *SIZES, *(key for curves in CURVES.values() for key in curves.models))
MODELS = frozenset({model for model, _ in KEYS} | set(THETAS.values()) | {WITH, WITHOUT})
"""The models that some figure shows."""


def copy_shown(runs: Mapping[str, RunConfig], source: Path, target: Path) -> list[str]:
    """Copy `<run>.parquet` of the runs of `MODELS` from `source` to `target`, which is emptied; their names.

    Raises FileNotFoundError where the results of such a run are missing.
    """
    names = [name for name, run in runs.items() if run.model in MODELS]
    if missing := [name for name in names if not (source / f"{name}.parquet").is_file()]:
        stage = evaluation(missing[0], runs[missing[0]].train_set)
        raise FileNotFoundError(
            f"{source} lacks the results of {', '.join(missing)}: run `dvc repro {stage}`"
        )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in names:
        shutil.copyfile(source / f"{name}.parquet", target / f"{name}.parquet")
    return names


if __name__ == "__main__":
    print("\n".join(copy_shown(load_config().runs, ARTIFACTS / "evaluate", ARTIFACTS / "shown")))
