"""Notebooks as pipeline steps: their code as stable files, their execution as a stable notebook.

    python -m sumlib.pipeline.notebook code      writes artifacts/notebooks/code/ (sumlib.pipeline.code)
    python -m sumlib.pipeline.notebook run NAME [-p KEY VALUE ...] --output PATH
                                                 writes the executed notebook
    python -m sumlib.pipeline.notebook book NAME ... --output FOLDER
                                                 copies executed notebooks for readers
    python -m sumlib.pipeline.notebook check     lists data and checkpoints that the profile lacks

Executed notebooks are normalised, so that identical runs give identical files.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sumlib.base.files import write_text
from sumlib.base.lifetime import end_with_parent
from sumlib.base.paths import ARTIFACTS, NOTEBOOKS, PARAMS, ROOT
from sumlib.config.params import load_config
from sumlib.config.schema import ConfigError
from sumlib.pipeline.cells import NotebookError, notebook_path, read_cells
from sumlib.pipeline.code import write_code
from sumlib.pipeline.inputs import check_inputs

KERNEL_ENV = {
    "TQDM_DISABLE": "1",  # progress bars would make every executed notebook different
    "PYTHONHASHSEED": "0",  # the order of a printed set too
    # sums do not depend on the number of cores then; what is worth several cores is done in processes
    # (sumlib/base/parallel.py)
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",  # glibc keeps freed memory: page faults dominate small-model training
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}
NOISE = (  # what differs between two runs of the same code, in text outputs
    (re.compile(r"\S*/ipykernel_\d+/\d+\.py"), "<cell>"),
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x0"),
    (re.compile(r"^.*\b(resuming after|starting anew)\b.*\n?", re.MULTILINE), ""),  # said after a kill
)

PICTURE_WIDTH = 1000
"""Pixels of a picture in a copy for readers, at most."""


def run(name: str, parameters: dict, output: Path, folder: Path = NOTEBOOKS) -> None:
    """Execute a notebook from the repository root and write it, normalised, to `output`.

    Nothing is written to `output` before the run has succeeded; a failed notebook stays beside it as
    `<stem>.partial.ipynb`. Raises NotebookError.
    """
    sys.modules.setdefault(
        "rfc3987_syntax", None
    )  # jsonschema does without it, and importing it takes longer than all the rest of papermill
    import papermill  # a second of import that `code` does not need

    source = notebook_path(name, folder)
    _check_parameters(source, parameters)
    _check_profile()
    if folder == NOTEBOOKS:
        check(name, parameters.get("profile"))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.stem + ".partial.ipynb")
    for key, value in KERNEL_ENV.items():
        os.environ.setdefault(key, value)
    try:
        papermill.execute_notebook(
            source,
            _plain(partial),
            parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=ROOT,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            shutdown_kernel="immediate"
            if "DVC_STAGE" in os.environ
            else "graceful",  # saves 3 s a stage; the smoke profile cleans up at exit
        )
    except papermill.PapermillExecutionError as error:
        what = f"cell [{error.exec_count}] of {source.name}: {error.ename}: {error.evalue}"
        raise NotebookError(f"{what}\nSee {_shown(partial)}") from None
    except RuntimeError as error:  # the kernel died
        raise NotebookError(f"{source.name}: {error}\nSee {_shown(partial)}") from None
    write_text(output, normalise(partial.read_text(encoding="utf-8")))
    partial.unlink()


def check(name: str = "", profile: str | None = None) -> None:
    """NotebookError with one message if the profile lacks data or checkpoints that the notebook reads ("":
    any)."""
    try:
        check_inputs(load_config(profile), name)
    except (ConfigError, FileNotFoundError) as error:
        raise NotebookError(str(error)) from None


def write_book(
    names: Sequence[str], output: Path, executed: Path = ARTIFACTS / "notebooks", folder: Path = NOTEBOOKS
) -> list[Path]:
    """Copy the executed notebooks of the stages into the folder `output`, as `<notebook>.ipynb`; the paths.

    What stands after @ in a name is dropped, so only one of a kind can be copied. The prose is that of the
    notebook in `folder` today, since a change of words repeats no stage; pictures are made smaller.
    NotebookError if one is missing.
    """
    paths = []
    for name in names:
        source, path = executed / f"{name}.ipynb", output / f"{name.split('@')[0]}.ipynb"
        if not source.is_file():
            raise NotebookError(f"{_shown(source)} is missing: run `dvc repro {stage_of(name)}`")
        if path in paths:
            raise NotebookError(f"two notebooks would be written to {path.name}; name one of a kind")
        write_text(path, _with_prose_of(notebook_path(path.stem, folder), source.read_text(encoding="utf-8")))
        paths.append(path)
    return paths


def _with_prose_of(path: Path, executed: str) -> str:
    """The text of an executed notebook with the prose cells of the notebook `path`, one by one."""
    notebook = json.loads(executed)
    prose = [cell["source"] for cell in read_cells(path) if cell["cell_type"] == "markdown"]
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    if len(prose) == len(cells):  # else cells were added or taken away, and it is run again anyway
        for cell, source in zip(cells, prose):
            cell["source"] = source
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _light_picture("".join(data["image/png"]))
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _light_picture(png: str) -> str:
    """A PNG (in base 64) for a web page: `PICTURE_WIDTH` at most, with a palette, if that makes it smaller.

    The pictures in full are in results/ and in artifacts/notebooks/.
    """
    content = base64.b64decode(png)
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    if picture.width > PICTURE_WIDTH:
        size = PICTURE_WIDTH, round(picture.height * PICTURE_WIDTH / picture.width)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    light = io.BytesIO()
    picture.quantize(256).save(light, "png", optimize=True)
    return base64.b64encode(min(light.getvalue(), content, key=len)).decode() + "\n"


def stage_of(name: str) -> str:
    """The stage that executes a notebook, by the name of its file.

    >>> stage_of("pseudo_label@masks"), stage_of("evaluate@sam"), stage_of("finetune@human-small")
    ('pseudo_label@sam', 'evaluate_baseline@sam', 'finetune_human@human-small')
    >>> stage_of("tables"), stage_of("finetune@sum-small")
    ('tables', 'finetune@sum-small')
    """
    kind, _, key = name.partition("@")
    config = load_config()
    if kind == "pseudo_label":
        key = next((who for who, labeller in config.labellers.items() if labeller.masks == key), key)
    if (run := config.runs.get(key)) and kind == "finetune" and not run.unlabeled:
        kind = "finetune_human"
    if run and kind == "evaluate" and run.budget == "none":
        kind = "evaluate_baseline"
    return f"{kind}@{key}" if key else kind


def normalise(text: str) -> str:
    """An executed notebook without what differs from run to run or from machine to machine."""
    notebook = json.loads(text)
    for index, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{index:02d}"
        tags = cell.get("metadata", {}).get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            outputs = [_clean(output) for output in _merge_streams(cell["outputs"])]
            cell["outputs"] = [output for output in outputs if output.get("text") != ""]
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _merge_streams(outputs: list[dict]) -> list[dict]:
    """Outputs with all text of a stream in its first one: how it is cut into messages depends on timing."""
    merged, streams = [], {}
    for output in outputs:
        if output["output_type"] != "stream":
            merged.append(output)
        elif output["name"] in streams:
            streams[output["name"]]["text"] += "".join(output["text"])
        else:
            streams[output["name"]] = output | {"text": "".join(output["text"])}
            merged.append(streams[output["name"]])
    return merged


def _clean(value):
    """`value` with machine paths and addresses replaced in every text; encoded images stay as they are."""
    if isinstance(value, dict):
        return {
            key: item if key.startswith(("image/p", "image/j")) else _clean(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if not isinstance(value, str):
        return value
    for folder, shown in ((ROOT, "."), (Path(sys.prefix), "<env>"), (Path.home(), "~")):
        value = (
            re.sub(re.escape(str(folder)) + r"(?![\w.-])", shown, value) if folder != folder.parent else value
        )
    for pattern, shown in NOISE:
        value = pattern.sub(shown, value)
    return value


def _check_parameters(path: Path, parameters: dict) -> None:
    """Every parameter must be set in the cell tagged `parameters`: papermill would only warn."""
    tagged = [cell for cell in read_cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    tree = ast.parse("\n".join(cell["source"] for cell in tagged))
    known = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    known += [node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)]
    for key in parameters:
        if key not in known:
            raise NotebookError(f"{path.name} has no parameter {key!r}; it has: {', '.join(known) or 'none'}")


def _check_profile() -> None:
    """In a DVC stage the profile is the one of params.yaml: DVC does not see SUM_PROFILE and would cache a
    lie."""
    if "DVC_STAGE" in os.environ and os.environ.get("SUM_PROFILE"):
        raise NotebookError(
            f"SUM_PROFILE is set; unset it and choose `profile:` in {PARAMS.name} for `dvc repro`"
        )


# ---- helpers and command line ----


def _plain(path: Path) -> str:
    """`path` for papermill, which takes braces for placeholders."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _shown(path: Path) -> str:
    """`path` relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _literal(text: str):
    """A command-line value as Python literal (number, True, None), else as it stands."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sumlib.pipeline.notebook", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("code", help="write the code files of all notebooks")
    commands.add_parser("check", help="list data and checkpoints that the profile lacks")
    book = commands.add_parser("book", help="copy executed notebooks for readers")
    book.add_argument("names", nargs="+", metavar="NAME", help="stage, for example refine@medium")
    book.add_argument("--output", type=Path, required=True)
    commands.add_parser("run", help="execute a notebook").add_argument(
        "name", help="notebook, without folder and .ipynb"
    )
    commands.choices["run"].add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    commands.choices["run"].add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if "DVC_STAGE" in os.environ:  # a stage shall not go on without the pipeline that waits for it
        end_with_parent()
    try:
        if options.command == "code":
            write_code()
        elif options.command == "book":
            write_book(options.names, ROOT / options.output)
        elif options.command == "check":
            check()
            print("nothing is missing")
        else:
            run(options.name, {key: _literal(value) for key, value in options.p}, ROOT / options.output)
    except NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
