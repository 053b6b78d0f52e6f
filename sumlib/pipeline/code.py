"""What a stage depends on in place of its notebook: a file of hashes that words do not change.

    python -m sumlib.pipeline.notebook code     writes artifacts/notebooks/code/

The code file of a notebook holds a hash of its code cells and one of every module of sumlib that they use, of
their syntax trees (`sumlib.base.code`): saving outputs, rewriting prose, a comment, a docstring or the layout
of a module leaves it as it is. (Naming every module in every stage of dvc.yaml would do the same, with
a dvc.lock so long that DVC spends seconds a stage on it.)

The notebooks of `BY_METHOD` run once for each model. They have a code file for each method, with the module
`sumlib.methods.<method>` and what that imports: a change of a method changes the file of its own runs alone.

The architectures of methods are imported by a name that stands in a file of weights, and no import statement
shows it: they count where a notebook names a run that has one.

Beside them, datasets/<part>.json holds that part of the section `datasets` of params.yaml. Most stages depend
on one, and the section itself in each of them would be a third of dvc.lock.
"""

import ast
import json
from dataclasses import asdict
from pathlib import Path

from sumlib.base.code import PACKAGE, imported, module_file, modules_used, tree_hash
from sumlib.base.files import write_text
from sumlib.base.paths import ARTIFACTS, NOTEBOOKS, PARAMS, ROOT
from sumlib.config.params import DATASET_ROLES, load_config, load_datasets
from sumlib.pipeline.cells import read_cells

CODE = ARTIFACTS / "notebooks" / "code"
METHODS = f"{PACKAGE}.methods"
BY_METHOD = ("finetune", "evaluate")
"""Notebooks with a code file for each method."""
PLAIN = "sum"
"""The method of runs that need no module of `sumlib.methods`."""


def code_files(folder: Path = NOTEBOOKS, root: Path = ROOT) -> dict[str, str]:
    """Path below the folder of code files -> text, for all notebooks of `folder` and for the data sets.

    `root` is the folder that holds ``sumlib/``.
    """
    files = {}
    for path in sorted(folder.glob("*.ipynb")):
        cells = code_of(path)
        if path.stem in BY_METHOD:
            for method in (PLAIN, *methods(root)):
                extra = () if method == PLAIN else method_modules(path.stem, method, root)
                files[f"{path.stem}/{method}.py"] = code_file(cells, extra, root)
        else:
            files[f"{path.stem}.py"] = code_file(cells, architectures(cells, root), root)
    return files | dataset_files(root)


def dataset_files(root: Path = ROOT) -> dict[str, str]:
    """Path below the folder of code files -> text, for the parts of section `datasets` of params.yaml."""
    datasets = load_datasets(root / PARAMS.name)
    parts = {
        role: {name: asdict(data) for name, data in datasets.items() if data.role == role}
        for role in DATASET_ROLES
    }
    return {f"datasets/{role}.json": json.dumps(part, indent=1) + "\n" for role, part in parts.items()}


def code_file(cells: str, extra: tuple[str, ...] = (), root: Path = ROOT) -> str:
    """The text of a code file: the hash of `cells`, then of each module that they use or `extra` names."""
    lines = [f"cells {tree_hash(without_magics(cells))}", *magics(cells)]
    named = {*imported(without_magics(cells), root=root), *extra}
    lines += [f"{name} {tree_hash(_text(name, root))}" for name in modules_used(*named, root=root)]
    return "".join(f"# {line}\n" for line in lines)


def code_of(path: Path) -> str:
    """The code cells of a notebook, without trailing blanks, empty cells, outputs, prose and metadata."""
    sources = (cell["source"] for cell in read_cells(path) if cell["cell_type"] == "code")
    cells = ["\n".join(line.rstrip() for line in source.strip().splitlines()) for source in sources]
    return "\n\n".join(f"# %%\n{cell}" for cell in cells if cell) + "\n"


def magics(cells: str) -> list[str]:
    """IPython's own lines of `cells`, which are not Python."""
    return [line for line in cells.splitlines() if line.lstrip().startswith(("%", "!"))]


def without_magics(cells: str) -> str:
    """`cells` with those lines blank."""
    lines = cells.splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def methods(root: Path = ROOT) -> list[str]:
    """Names of the methods in sumlib/methods, sorted: the files that say which class is theirs, METHOD."""
    names = sorted(path.stem for path in (root / PACKAGE / "methods").glob("*.py"))
    return [name for name in names if names_class(f"{METHODS}.{name}", "METHOD", root)]


def method_modules(notebook: str, method: str, root: Path = ROOT) -> tuple[str, ...]:
    """The module of a method, where the notebook runs it: evaluation needs that of an architecture only."""
    name = f"{METHODS}.{method}"
    return (name,) if notebook == "finetune" or names_class(name, "ARCHITECTURE", root) else ()


def names_class(module: str, variable: str, root: Path = ROOT) -> bool:
    """Whether a module holds a line ``variable = SomeClass``."""
    tree = ast.parse(module_file(module, root).read_text(encoding="utf-8"))
    lines = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)]
    return any(ast.unparse(line.targets[0]) == variable for line in lines)


def architectures(cells: str, root: Path = ROOT) -> tuple[str, ...]:
    """Modules of the models that the cells open by the name of a run, where those are of a kind of their
    own."""
    tree = ast.parse(without_magics(cells))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {text.removesuffix(".safetensors") for text in texts if isinstance(text, str)}
    runs = load_config("micro", root / PARAMS.name).runs
    used = {runs[name].method for name in names & runs.keys()} - {PLAIN}
    return tuple(module for method in sorted(used) for module in method_modules("evaluate", method, root))


def _text(module: str, root: Path) -> str:
    return module_file(module, root).read_text(encoding="utf-8")


def write_code(folder: Path = NOTEBOOKS, output: Path = CODE, root: Path = ROOT) -> list[Path]:
    """Write the code files of all notebooks and those of data sets below `output` and return their paths."""
    paths = []
    for name, text in code_files(folder, root).items():
        paths.append(output / name)
        write_text(paths[-1], text)
    return paths
