"""dvc.yaml names what each stage really uses, and dvc.lock with results/ belongs to the code, parameters and
data in git."""

import ast
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from pipeline import ParamsDependency, read_stages, stale

from sumlib.base.paths import PARAMS, ROOT
from sumlib.config.params import SECTIONS, load_config
from sumlib.pipeline.cells import notebook_path
from sumlib.pipeline.code import BY_METHOD, code_files, code_of

DVC = [sys.executable, "-m", "dvc"]
CODE = "artifacts/notebooks/code"


@pytest.fixture(scope="module")
def stages():
    return read_stages(ROOT)


def notebook_of(stage) -> str | None:
    """Name of the notebook that a stage executes."""
    found = re.match(r"python -m sumlib\.pipeline\.notebook run (\w+) ", stage.cmd)
    return found and found.group(1)


def paths(items) -> set[str]:
    return {item.def_path for item in items if not isinstance(item, ParamsDependency)}


@pytest.fixture(scope="module")
def code():
    """The code files, {path: text}."""
    return {f"{CODE}/{name}": text for name, text in code_files().items()}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of everything that code files and stages are made from."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("sumlib", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", "data.dvc"):
        shutil.copy(ROOT / name, root)
    subprocess.run([*DVC, "init", "--no-scm", "-q"], cwd=root, check=True)
    return root


@contextmanager
def edited(path: Path, edit):
    """The file with `edit` of its text for a while."""
    text = path.read_text(encoding="utf-8")
    assert edit(text) != text
    path.write_text(edit(text), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def changed_code(root: Path, code: dict[str, str]) -> set[str]:
    """Code files of the copy that differ from `code`."""
    now = {f"{CODE}/{name}": text for name, text in code_files(root / "notebooks", root).items()}
    assert now.keys() == code.keys()
    return {path for path in code if code[path] != now[path]}


def dependencies(stage) -> dict:
    """Dependencies of a stage and the values of its parameters."""
    values = [dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)]
    return {"files": paths(stage.deps), "values": values}


def test_every_run_is_trained_and_evaluated(stages):
    runs = load_config("micro").runs
    for prefix, names in {
        "finetune@": {name for name, run in runs.items() if run.unlabeled},
        "finetune_human@": {name for name, run in runs.items() if run.budget != "none" and not run.unlabeled},
        "evaluate@": {name for name, run in runs.items() if run.budget != "none"},
        "evaluate_baseline@": {name for name, run in runs.items() if run.budget == "none"},
    }.items():
        assert {name.split("@")[1] for name in stages if name.startswith(prefix)} == names


def test_code_and_modules_reach_the_stages_through_the_code_files_alone(stages, code):
    assert paths(stages["code"].deps) == {"notebooks", "sumlib"}
    assert paths(stages["code"].outs) == {CODE}
    for name, stage in stages.items():
        named = {path for path in paths(stage.deps) if path.endswith(".py")}
        assert named <= code.keys(), f"{name} names {named - code.keys()}: its code file holds their hashes"


def test_stages_depend_on_code_never_on_notebooks(stages):
    runs = load_config("micro").runs
    for name, stage in stages.items():
        notebook = notebook_of(stage)
        if not notebook:
            assert name in ("code", "shown", "notebooks"), f"{name} runs something else than a notebook"
            continue
        file = f"{notebook}/{runs[name.split('@')[1]].method}" if notebook in BY_METHOD else notebook
        assert f"{CODE}/{file}.py" in paths(stage.deps), f"{name} does not depend on its code"
        executed = {path for path in paths(stage.outs) if path.endswith(".ipynb")}
        assert executed == {re.search(r"--output (\S+)", stage.cmd).group(1)}, f"{name} keeps no notebook"
        assert not any(path.endswith(".ipynb") for path in paths(stage.deps)), f"{name} depends on a notebook"
        assert not any(
            path.split("/")[0] in ("data", "sample", "models", "datasets") for path in paths(stage.outs)
        ), f"{name} writes to data"


def test_words_repeat_nothing(copy, code):
    """A comment in every module, another docstring for all that has one, another layout."""
    modules = sorted((copy / "sumlib").rglob("*.py"))
    assert len(modules) > 50
    texts = {path: path.read_text(encoding="utf-8") for path in modules}
    for path, text in texts.items():
        text = re.sub(r'^( *)"""(?=[A-Z`])', r'\1"""In other words: ', text, flags=re.MULTILINE)
        path.write_text(f"# Words.\n\n{text}\n\n# More words.\n", encoding="utf-8")
    try:
        assert changed_code(copy, code) == set()
    finally:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")


def test_a_comment_in_a_notebook_repeats_nothing_and_code_does(copy, code):
    notebook = copy / "notebooks" / "tables.ipynb"
    cell = '"import numpy as np\\n",'
    with edited(notebook, lambda text: text.replace(cell, '"# Words.\\n",\n    ' + cell)):
        assert changed_code(copy, code) == set()
    with edited(notebook, lambda text: text.replace(cell, cell + '\n    "import os\\n",')):
        assert changed_code(copy, code) == {f"{CODE}/tables.py"}


def test_a_change_of_a_method_repeats_its_own_training(copy, code, stages):
    added = "\nADDED = 1\n"
    with edited(copy / "sumlib" / "methods" / "u2pl.py", lambda text: text + added):
        changed = changed_code(copy, code)
    assert changed == {f"{CODE}/finetune/u2pl.py"}
    assert [name for name, stage in stages.items() if changed & paths(stage.deps)] == ["finetune@u2pl-small"]
    with edited(copy / "sumlib" / "losses.py", lambda text: text + added):
        changed = changed_code(copy, code)
    repeated = {name.split("@")[0] for name, stage in stages.items() if changed & paths(stage.deps)}
    assert {"finetune", "finetune_human", "refine"} <= repeated and not {"tables", "claims"} & repeated


def test_what_is_imported_by_a_name_in_params_yaml_counts(copy, code, stages):
    added = "\nADDED = 1\n"
    with edited(copy / "sumlib" / "data" / "layouts" / "coco.py", lambda text: text + added):
        changed = changed_code(copy, code)
    repeated = {name.split("@")[0] for name, stage in stages.items() if changed & paths(stage.deps)}
    assert {"finetune", "evaluate", "additional", "quality"} <= repeated and not {
        "tables",
        "claims",
    } & repeated
    with edited(copy / "sumlib" / "methods" / "hq_sam.py", lambda text: text + added):
        changed = changed_code(copy, code)
    assert changed == {
        f"{CODE}/{name}.py" for name in ("finetune/hq_sam", "evaluate/hq_sam", "figures", "variants")
    }


def test_a_new_run_leaves_other_stages_alone(copy, stages):
    new = "  sum-medium-seed3: {<<: *sum, budget: medium, pseudo_labels: medium, seed: 3}\n"
    before = {name: dependencies(stage) for name, stage in read_stages(copy).items()}
    with edited(copy / "params.yaml", lambda text: text.replace("\n  sum-large:", f"\n{new}  sum-large:")):
        after = {name: dependencies(stage) for name, stage in read_stages(copy).items()}
    assert after.keys() - before.keys() == {"finetune@sum-medium-seed3", "evaluate@sum-medium-seed3"}
    repeated = {name for name in before if before[name] != after[name]}
    everything = {name for name, stage in stages.items() if "artifacts/evaluate" in paths(stage.deps)}
    # the reports read what all runs have scored; `shown` hands on to the figures what they show
    assert everything == {"tables", "shown", "claims", "explore"}
    # `code` looks at names of runs alone; a run of another model changes no output of `shown` (test_shown.py)
    assert repeated == {"code", "tables", "shown", "claims", "explore"}


def test_human_only_runs_wait_for_no_pseudo_labels(stages):
    human = [stage for name, stage in stages.items() if name.startswith("finetune_human@")]
    assert len(human) > 5
    for stage in human:
        assert not any("pseudo_label" in path or "SA-1B" in path for path in paths(stage.deps)), stage.name


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
        read = attributes & SECTIONS.keys()
        read |= {
            section
            for section, name in (("model", "checkpoint"), ("data", "data_root"))
            if name in attributes
        }
        assert read <= keys, (
            f"{name} reads config.{', config.'.join(sorted(read - keys))}: name it in dvc.yaml, params"
        )
        if attributes & {"run", "runs"}:
            assert keys & {"runs", "baselines", "human_only", "with_labels"}, (
                f"{name} reads config.runs: name it in dvc.yaml, params"
            )


def test_results_belong_to_the_code_in_git(code):
    reasons = stale(ROOT, code)
    assert not reasons, "\n".join(
        ["results are stale: run `make repro`, commit dvc.lock and results/", *reasons]
    )


# ---- the check itself, on a small pipeline that is really run ----


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


def test_a_code_file_stands_for_the_code(pipeline, tmp_path):
    root = shutil.copytree(pipeline, tmp_path / "copy", symlinks=True)
    assert stale(root, {"code.py": "print()"}) == []
    reasons = stale(root, {"code.py": "int()"})
    assert [reason.split(" is ")[0] for reason in reasons] == [
        f"fit@{k}: input code.py" for k in ("one", "two")
    ]


def test_what_is_the_users_stays(pipeline, tmp_path):
    """Own checkpoints and data survive `dvc repro` of all, also of the data and of a changed folder of
    results."""
    root = shutil.copytree(pipeline, tmp_path / "copy", symlinks=True)
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, root)
    own = [root / "models" / "sam_vit_h.pth", root / "datasets" / "mine" / "a.png"]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    edit(root, "sample/set/a.txt", "a", "b")
    edit(root, "code.py", "print", "int")
    for command in (["repro", "-q"], ["repro", "-q", "--force"], ["status"], ["gc", "-w", "-f", "-q"]):
        subprocess.run([*DVC, *command], cwd=root, check=True, capture_output=True)
    assert "b" in (root / "results" / "tables" / "all.csv").read_text()  # it did run
    assert [path.read_text() for path in own] == ["mine", "mine"]
    git = subprocess.run(["git", "status", "--porcelain", "-uall"], cwd=root, capture_output=True, text=True)
    assert git.returncode == 0 and "mine" not in git.stdout and "models" not in git.stdout


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
