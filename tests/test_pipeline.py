"""dvc.yaml names what each stage really uses, and dvc.lock with results/ belongs to the code, parameters and data in git."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import ParamsDependency, read_stages, stale

from sumlib.base.paths import NOTEBOOKS, PARAMS, ROOT
from sumlib.config.params import SECTIONS, load_config
from sumlib.pipeline.notebook import code_of, notebook_path

DVC = [sys.executable, "-m", "dvc"]


@pytest.fixture(scope="module")
def stages():
    return read_stages(ROOT)


def notebook_of(stage) -> str | None:
    """Name of the notebook that a stage executes."""
    found = re.match(r"python -m sumlib\.pipeline\.notebook run (\w+) ", stage.cmd)
    return found and found.group(1)


def paths(items) -> set[str]:
    return {item.def_path for item in items if not isinstance(item, ParamsDependency)}


def test_every_run_is_trained_and_evaluated(stages):
    runs = load_config("micro").runs
    tuned = {name for name, run in runs.items() if run.budget != "none"}
    assert {name.split("@")[1] for name in stages if name.startswith("finetune@")} == tuned
    assert {
        name.split("@")[1] for name in stages if name.startswith(("evaluate@", "evaluate_baseline@"))
    } == set(runs)


def test_code_and_modules_reach_the_stages_through_the_code_files_alone(stages):
    code = stages["code"]
    assert paths(code.deps) == {"notebooks", "sumlib"}
    assert paths(code.outs) == {
        f"artifacts/notebooks/code/{path.stem}.py" for path in NOTEBOOKS.glob("*.ipynb")
    }
    for name, stage in stages.items():
        modules = sorted(
            path
            for path in paths(stage.deps)
            if path.endswith(".py") and not path.startswith("artifacts/notebooks/code/")
        )
        assert not modules, f"{name} names {modules}: its code file holds their hashes"


def test_stages_depend_on_code_never_on_notebooks(stages):
    for name, stage in stages.items():
        notebook = notebook_of(stage)
        if not notebook:
            assert name == "code", f"{name} runs something else than a notebook"
            continue
        suffix = "@" + name.split("@")[1] if "@" in name else ""
        assert f"artifacts/notebooks/code/{notebook}.py" in paths(stage.deps), (
            f"{name} does not depend on its code"
        )
        assert f"artifacts/notebooks/{notebook}{suffix}.ipynb" in paths(stage.outs), (
            f"{name} does not keep its notebook"
        )
        assert not any(path.endswith(".ipynb") for path in paths(stage.deps)), f"{name} depends on a notebook"
        assert not any(path.split("/")[0] in ("data", "sample") for path in paths(stage.outs)), (
            f"{name} writes to data"
        )


def test_stages_name_the_parameters_that_their_notebooks_read(stages):
    for name, stage in stages.items():
        if not (notebook := notebook_of(stage)):
            continue
        keys = {
            key.split(".")[0] for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params
        }
        tree = ast.parse(
            "\n".join(
                line
                for line in code_of(notebook_path(notebook)).splitlines()
                if not line.startswith(("%", "!"))
            )
        )
        attributes = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "config"
        }
        read = attributes & SECTIONS.keys() | (
            {"model", "data"} if attributes & {"checkpoint", "data_root"} else set()
        )
        assert read <= keys, (
            f"{name} reads config.{', config.'.join(sorted(read - keys))}: name it in dvc.yaml, params"
        )
        if attributes & {"run", "runs"}:
            assert keys & {"runs", "baselines"}, f"{name} reads config.runs: name it in dvc.yaml, params"


def test_results_belong_to_the_code_in_git():
    reasons = stale(ROOT)
    assert not reasons, "\n".join(
        ["results are stale; run `make repro`, commit dvc.lock and results/:", *reasons]
    )


# ---- the check itself, on a small pipeline that is really run ----------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A repository with a data import, a loop of stages and a report, reproduced once."""
    root = tmp_path_factory.mktemp("pipeline")
    (root / "sample" / "set").mkdir(parents=True)
    (root / "sample" / "set" / "a.txt").write_text("a")
    (root / "sample" / "b-c.txt").write_text("b")
    (root / "code.py").write_text("print()")
    (root / ".gitignore").write_text("/artifacts/\n/data\n")
    (root / "params.yaml").write_text(
        "profile: small\nruns: {one: {x: 1}, two: {x: 2}}\nfit: {small: {lr: 1.0e-4}}\n"
    )
    (root / "dvc.yaml").write_text("""stages:
  fit:
    foreach: ${runs}
    do:
      cmd: mkdir -p artifacts/fit && cat data/set/a.txt code.py > artifacts/fit/${key}.txt
      deps: [data/set, code.py]
      params: ["runs.${key}", "fit.${profile}"]
      outs: ["artifacts/fit/${key}.txt"]
  tables:
    cmd: mkdir -p results/tables && cat artifacts/fit/*.txt > results/tables/all.csv
    deps: [artifacts/fit, data]
    outs: [{results/tables: {cache: false}}]
""")
    for command in (
        "git init -q",
        "dvc init -q",
        "dvc import-url -q sample data",
        "dvc unfreeze -q data.dvc",
        "dvc repro -q",
    ):
        words = command.split()
        subprocess.run(
            DVC + words[1:] if words[0] == "dvc" else words, cwd=root, check=True, capture_output=True
        )
    return root


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))


def test_a_reproduced_pipeline_is_not_stale(pipeline):
    assert stale(pipeline) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "reasons"),
    [
        ("code.py", "print", "int", ["fit@one: input code.py is not", "fit@two: input code.py is not"]),
        ("params.yaml", "x: 1", "x: 3", ["fit@one: parameter runs.one has changed"]),
        (
            "params.yaml",
            "1.0e-4",
            "2.0e-4",
            ["fit@one: parameter fit.small has changed", "fit@two: parameter fit.small has changed"],
        ),
        (
            "params.yaml",
            "two: {",
            "three: {",
            ["fit@three has never been run", "fit@two is in dvc.lock but not in dvc.yaml"],
        ),
        (
            "sample/set/a.txt",
            "a",
            "b",
            [
                "fit@one: input data/set is not",
                "fit@two: input data/set",
                "tables: input data is",
                "data.dvc does not belong",
            ],
        ),
        (
            "results/tables/all.csv",
            "a",
            "b",
            ["tables: results/tables is missing or not what it has written"],
        ),
        ("dvc.yaml", "cat artifacts", "head artifacts", ["tables: its command has changed"]),
        (
            "dvc.yaml",
            "[artifacts/fit, data]",
            "[artifacts/fit, data, code.py]",
            ["tables: dependency code.py is in only one"],
        ),
        (
            "dvc.lock",
            "outs:\n    - path: artifacts/fit/two.txt\n      hash: md5\n      md5: ",
            "outs:\n    - path: artifacts/fit/two.txt\n      hash: md5\n      md5: 0",
            ["tables: input artifacts/fit is not the one it was run with"],
        ),
        ("data.dvc", "deps:", "frozen: true\ndeps:", ["data.dvc is frozen"]),
    ],
)
def test_every_kind_of_staleness_is_seen(pipeline, tmp_path, name, old, new, reasons):
    root = shutil.copytree(pipeline, tmp_path / "copy", symlinks=True)
    edit(root, name, old, new)
    found = stale(root)
    assert len(found) == len(reasons) and all(
        line.startswith(reason) for line, reason in zip(found, reasons, strict=True)
    ), found


def test_a_missing_lock_is_a_clear_failure(pipeline, tmp_path):
    root = shutil.copytree(pipeline, tmp_path / "copy", symlinks=True)
    (root / "dvc.lock").unlink()
    with pytest.raises(AssertionError, match="dvc.lock is missing: run `make repro`"):
        stale(root)


def test_parameters_are_the_same_for_dvc_and_the_library():
    """DVC reads YAML 1.2 and PyYAML 1.1; a value like 1e-4 would be two things."""
    import yaml
    from dvc.utils.serialize import load_yaml

    assert load_yaml(str(PARAMS)) == yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
