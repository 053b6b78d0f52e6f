"""sumlib.pipeline.notebook on a small notebook: stable code, stable execution, clear failures, true
dependencies."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sumlib.base.paths import NOTEBOOKS, ROOT
from sumlib.pipeline import notebook
from sumlib.pipeline.cells import NotebookError
from sumlib.pipeline.code import code_file, code_of, write_code
from sumlib.pipeline.notebook import normalise, run, write_book

CELLS = [
    ("markdown", "# Title", None),
    ("code", 'run = "a"\nfails: bool = False', "parameters"),
    (
        "code",
        "%matplotlib inline\nimport os, sys, time   \nimport matplotlib.pyplot as plt\n\n"
        "plt.plot([1, 2]); plt.show()\n",
        None,
    ),
    ("code", "", None),
    (
        "code",
        "for i in range(3):\n    print(i, flush=True); print('!', file=sys.stderr, flush=True)\n"
        "    time.sleep(0.02)\n"
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
    for name in ("__init__", "used", "other", "extra"):
        (tmp_path / "sumlib" / f"{name}.py").write_text("" if name == "__init__" else "x = 1\n")
    cells = code_of(write_notebook(tmp_path, [("code", "%matplotlib inline\nfrom sumlib import used", None)]))
    before = code_file(cells, root=tmp_path)
    lines = [line.split()[1] for line in before.splitlines()]
    assert lines == ["cells", "%matplotlib", "sumlib.used"]
    assert "# sumlib.extra " in code_file(cells, ("sumlib.extra",), tmp_path)
    (tmp_path / "sumlib" / "other.py").write_text("x = 2\n")
    (tmp_path / "sumlib" / "used.py").write_text("x = 1  # one\n")
    assert code_file(cells.replace("used", "used  # words"), root=tmp_path) == before
    (tmp_path / "sumlib" / "used.py").write_text("x = 2\n")
    assert code_file(cells, root=tmp_path) != before
    assert code_file(cells.replace("%matplotlib inline", ""), root=tmp_path) != before


def test_every_notebook_gets_its_code_files(tmp_path):
    written = write_code(output=tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    notebooks = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    sets = {f"datasets/{part}.json" for part in ("train", "dev", "test", "additional")}
    assert sets < names
    assert {name.split("/")[0].removesuffix(".py") for name in names - sets} == notebooks and len(names) > 19
    text = (tmp_path / "finetune" / "u2pl.py").read_text()
    for used in ("finetune", "losses", "methods.u2pl"):
        assert f"# sumlib.{used} " in text
    for unused in ("report.results", "pipeline.notebook", "methods.augseg", "methods.hq_sam"):
        assert f"# sumlib.{unused} " not in text
    assert list(json.loads((tmp_path / "datasets" / "dev.json").read_text())) == [
        "dev-salient",
        "dev-entity",
        "dev-part",
    ]
    assert "# sumlib.methods.u2pl " not in (tmp_path / "evaluate" / "u2pl.py").read_text()
    assert "# sumlib.methods.hq_sam " in (tmp_path / "evaluate" / "hq_sam.py").read_text()


def test_pictures_of_a_book_are_light_and_still_the_same_pictures(tmp_path):
    shade = np.linspace(0, 255, 1500).astype(np.uint8)
    rows = np.tile(shade, (300, 1))
    noise = np.random.default_rng(0).integers(0, 20, (300, 1500, 3), np.uint8)
    pixels = (np.stack([rows, rows[:, ::-1], np.full_like(rows, 90)], -1) // 2 + noise).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    cell = {"cell_type": "code", "source": ["1"], "metadata": {}}
    output = {"output_type": "display_data", "data": {"image/png": base64.b64encode(png.getvalue()).decode()}}
    for folder in ("executed", "folder"):
        (tmp_path / folder).mkdir()
        text = json.dumps({"cells": [cell | {"outputs": [output]}]})
        (tmp_path / folder / "tables.ipynb").write_text(text)
    (path,) = write_book(["tables"], tmp_path / "book", tmp_path / "executed", tmp_path / "folder")
    data = json.loads(path.read_text())["cells"][0]["outputs"][0]["data"]["image/png"]
    light = base64.b64decode(data)
    picture = Image.open(io.BytesIO(light)).convert("RGB")
    assert len(light) < len(png.getvalue()) / 2 and picture.size == (1000, 200)
    small = np.asarray(Image.fromarray(pixels).resize((100, 20), Image.Resampling.BOX), float)
    assert np.abs(np.asarray(picture.resize((100, 20), Image.Resampling.BOX), float) - small).mean() < 4


def test_a_resumed_training_leaves_the_same_notebook(tmp_path):
    def executed(*lines: str) -> str:
        path = write_notebook(tmp_path, [("code", "train()", None)])
        notebook = json.loads(path.read_text())
        notebook["cells"][0]["outputs"] = [
            {"output_type": "stream", "name": "stdout", "text": [line]} for line in lines
        ]
        return json.dumps(notebook)

    whole = normalise(executed("65 iterations\n"))
    assert "65 iterations" in whole
    assert normalise(executed("sum-small.pt: resuming after step 20\n", "65 iterations\n")) == whole
    only = normalise(executed("a.pt: a checkpoint of another configuration or data; starting anew\n"))
    assert only == normalise(executed())


def a_notebook(prose: str, code: str) -> str:
    """A notebook of one prose cell and one code cell."""
    cells = [{"cell_type": "markdown", "source": [prose]}, {"cell_type": "code", "source": [code]}]
    return json.dumps({"cells": [cell | {"metadata": {}} for cell in cells]})


def test_a_book_holds_one_notebook_of_a_kind_with_the_words_of_today(tmp_path):
    executed, book, folder = tmp_path / "executed", tmp_path / "book", tmp_path / "notebooks"
    for made in (executed, folder):
        made.mkdir()
    for name in ("tables", "refine@small", "refine@medium"):
        (executed / f"{name}.ipynb").write_text(a_notebook("old words", name))
    for name in ("tables", "refine"):
        (folder / f"{name}.ipynb").write_text(a_notebook("new words", "x"))
    paths = write_book(["tables", "refine@medium"], book, executed, folder)
    assert [path.name for path in paths] == ["tables.ipynb", "refine.ipynb"]
    cells = json.loads(paths[1].read_text())["cells"]
    assert [cell["source"] for cell in cells] == ["new words", ["refine@medium"]]
    with pytest.raises(NotebookError, match="claims.ipynb is missing: run `dvc repro claims`"):
        write_book(["claims"], book, executed, folder)
    with pytest.raises(NotebookError, match="run `dvc repro pseudo_label@sam`"):
        write_book(["pseudo_label@masks"], book, executed, folder)
    with pytest.raises(NotebookError, match="two notebooks would be written to refine.ipynb"):
        write_book(["refine@small", "refine@medium"], book, executed, folder)
