"""sumlib.pipeline.notebook on a small notebook: stable code, stable execution, clear failures, true dependencies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sumlib.base.paths import NOTEBOOKS, ROOT
from sumlib.pipeline import notebook
from sumlib.pipeline.notebook import (
    NotebookError,
    code_and_modules,
    code_of,
    modules_used,
    normalise,
    run,
    write_code,
)

CELLS = [
    ("markdown", "# Title", None),
    ("code", 'run = "a"\nfails: bool = False', "parameters"),
    (
        "code",
        "%matplotlib inline\nimport os, sys, time   \nimport matplotlib.pyplot as plt\n\nplt.plot([1, 2]); plt.show()\n",
        None,
    ),
    ("code", "", None),
    (
        "code",
        "for i in range(3):\n    print(i, flush=True); print('!', file=sys.stderr, flush=True); time.sleep(0.02)\n"
        "assert not fails, 'asked to'\nrun, os.getcwd(), object()",
        None,
    ),
]


def write_notebook(folder: Path, cells=CELLS, **extra) -> Path:
    """A notebook file `small.ipynb` of (type, source, tag) cells."""
    cells = [
        {
            "cell_type": kind,
            "id": f"c{i}",
            "metadata": {"tags": [tag]} if tag else {},
            "source": source.splitlines(True),
        }
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for i, (kind, source, tag) in enumerate(cells)
    ]
    spec = {"kernelspec": {"name": "python3", "language": "python", "display_name": "any"}}
    path = folder / "small.ipynb"
    path.write_text(
        json.dumps({"cells": cells, "metadata": spec, "nbformat": 4, "nbformat_minor": 5} | extra),
        encoding="utf-8",
    )
    return path


def test_code_is_the_same_whatever_jupyter_saves(tmp_path):
    path = write_notebook(tmp_path)
    code = code_of(path)
    assert code.startswith(
        '# %%\nrun = "a"\nfails: bool = False\n\n# %%\n%matplotlib inline\nimport os, sys, time\n'
    )
    assert "Title" not in code and code.count("# %%") == 3 and code.endswith("object()\n")
    saved = json.loads(path.read_text())
    for number, cell in enumerate(saved["cells"]):
        cell |= {"id": f"other{number}", "metadata": {"scrolled": True}, "source": "".join(cell["source"])}
        if cell["cell_type"] == "code":
            cell |= {
                "execution_count": 7,
                "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}],
            }
    saved["cells"][0]["source"] = "# Better title"
    path.write_text(json.dumps(saved, indent=4))
    assert code_of(path) == code


def test_two_executions_give_the_same_bytes_and_no_machine_path(tmp_path):
    write_notebook(tmp_path)
    outputs = [tmp_path / "new" / f"{name}.ipynb" for name in "ab"]
    for output in outputs:
        run("small", {"run": "sum-small"}, output, tmp_path)
    first, second = (output.read_text(encoding="utf-8") for output in outputs)
    assert first == second
    assert not any(str(place) in first for place in (ROOT, Path.home(), tmp_path, sys.prefix))
    cells = json.loads(first)["cells"]
    assert cells[2]["metadata"] == {"tags": ["injected-parameters"]}
    assert [output.get("text") for output in cells[5]["outputs"][:2]] == ["0\n1\n2\n", "!\n!\n!\n"]
    assert cells[5]["outputs"][2]["data"]["text/plain"] == ["('sum-small', '.', <object at 0x0>)"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.ipynb", "b.ipynb"]


def test_failure_is_reported_and_leaves_the_old_output(tmp_path):
    write_notebook(tmp_path)
    output = tmp_path / "out.ipynb"
    output.write_text("old")
    with pytest.raises(
        NotebookError, match=r"cell \[4\] of small.ipynb: AssertionError: asked to\nSee .*out.partial.ipynb"
    ):
        run("small", {"fails": True}, output, tmp_path)
    assert output.read_text() == "old" and (tmp_path / "out.partial.ipynb").is_file()


def test_wrong_calls_have_one_clear_message(tmp_path, monkeypatch):
    path = write_notebook(tmp_path)
    output = tmp_path / "out.ipynb"
    with pytest.raises(NotebookError, match="no notebook 'smal' in .*; it has: small"):
        run("smal", {}, output, tmp_path)
    with pytest.raises(NotebookError, match="small.ipynb has no parameter 'rum'; it has: run, fails"):
        run("small", {"rum": 1}, output, tmp_path)
    monkeypatch.setenv("DVC_STAGE", "finetune@sum-small")
    with pytest.raises(
        NotebookError, match="SUM_PROFILE is set; unset it and choose `profile:` in params.yaml"
    ):
        run("small", {}, output, tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(NotebookError, match="small.ipynb is not a notebook .*restore it with git"):
        code_of(path)
    assert not output.exists()


def test_command_line_fails_with_one_line():
    command = [
        sys.executable,
        "-m",
        "sumlib.pipeline.notebook",
        "run",
        "nothing",
        "--output",
        "artifacts/nothing.ipynb",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert (
        result.stderr.startswith("error: no notebook 'nothing' in notebooks/")
        and result.stderr.count("\n") == 1
    )


def test_values_of_the_command_line():
    assert [notebook._literal(text) for text in ("sum-small", "3", "1e-4", "True", "a b")] == [
        "sum-small",
        3,
        1e-4,
        True,
        "a b",
    ]


def test_normalising_twice_changes_nothing(tmp_path):
    once = normalise(write_notebook(tmp_path).read_text())
    assert normalise(once) == once


def test_a_code_file_changes_with_the_modules_that_are_used_and_with_no_other(tmp_path):
    (tmp_path / "sumlib").mkdir()
    for name in ("used", "other"):
        (tmp_path / "sumlib" / f"{name}.py").write_text("x = 1\n")
    path = write_notebook(tmp_path, [("code", "from sumlib import used", None)])
    before = code_and_modules(path, tmp_path)
    assert (
        before.startswith(code_of(path))
        and before.splitlines()[-1].startswith("# sumlib/used.py ")
        and "other" not in before
    )
    (tmp_path / "sumlib" / "other.py").write_text("x = 2\n")
    assert code_and_modules(path, tmp_path) == before
    (tmp_path / "sumlib" / "used.py").write_text("x = 2\n")
    assert code_and_modules(path, tmp_path) != before


def test_every_notebook_gets_its_code_file(tmp_path):
    written = write_code(output=tmp_path / "code")
    assert [path.stem for path in written] == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) and len(
        written
    ) > 10
    text = (tmp_path / "code" / "finetune.py").read_text()
    assert (
        "# sumlib/finetune.py " in text
        and "# sumlib/losses.py " in text
        and "# sumlib/report/results.py" not in text
        and "# sumlib/pipeline/notebook.py" not in text
    )


def test_modules_used_follows_real_imports(tmp_path):
    package = tmp_path / "sumlib"
    (package / "sub").mkdir(parents=True)
    files = {
        "__init__.py": '"""Docstring only."""\n__version__ = "1"\n',
        "a.py": "from . import b\nimport torch\n",
        "b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sumlib.unused\n",
        "unused.py": "",
        "lazy.py": "def f():\n    from sumlib.sub.c import thing\n",
        "sub/__init__.py": "from sumlib.sub.d import thing\n",
        "sub/c.py": "from .d import thing\n",
        "sub/d.py": "thing = 1\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    used = modules_used("%matplotlib inline\nimport sumlib.a as a\nfrom sumlib import lazy\n", tmp_path)
    assert [path.as_posix().removeprefix("sumlib/") for path in used] == [
        "a.py",
        "b.py",
        "lazy.py",
        "sub/__init__.py",
        "sub/c.py",
        "sub/d.py",
    ]
