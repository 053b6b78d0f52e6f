"""The house: imports go one way, one module reads YAML, notebooks argue while the library computes."""

import ast
from pathlib import Path

import pytest

from sumlib.notebook import code_of, imported_modules, read_cells
from sumlib.paths import NOTEBOOKS, ROOT

# From the bottom up: a module imports from rows below its own, or what stands left of it in its row.
# The names in a set are alternatives side by side: they import none of each other.
LAYERS = [
    ["paths", "schema", "runs", "config", {"workspace", "pictures", "bar", "parallel", "attention", "adapters", "hq", "micro_sam", "resampling"}],
    ["masks"],
    [{"losses", "uncertainty", "sampler", "metrics", "contrast"}],
    ["model", "checkpoint", {"tuning", "labeller"}],
    ["data"],
    ["train", "training_pairs", "refiner", "refinement", "variants", "pseudo", "smoke"],
    ["teacher", "sources", "steps", "finetune", "evaluate", "scenes", "gate", "foundation", "distill"],
    ["report", "bootstrap", {"figures", "claim_list", "beyond"}, "claims", {"panel", "rims", "quality", "study"}, {"quality_figures", "ablation_figures", "paper_figures"}],
    [{"notebook", "repro"}],
]
ORDER = [names if isinstance(names, set) else {names} for row in LAYERS for names in row]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "sumlib").rglob("*.py"))
NOTEBOOK_FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


def top(path: Path) -> str:
    """Name directly under sumlib: "data" for sumlib/data/coco.py, "" for sumlib/__init__.py."""
    return "" if path.parts[1] == "__init__.py" else Path(path.parts[1]).stem


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path):
    name = top(path)
    assert name in RANK or not name, f"{path} has no place in LAYERS: decide where it belongs"
    for other in imported_modules((ROOT / path).read_text(encoding="utf-8"), ROOT, path):
        if top(other) not in ("", name):
            assert name and RANK[top(other)] < RANK[name], f"{path} imports {other}, which stands above or beside it"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_say_what_they_are_and_only_config_reads_yaml(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} has no docstring"
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "yaml" not in imports or path == Path("sumlib/config.py"), f"{path} reads YAML; sumlib.config does that"


def code_tree(path: Path) -> ast.AST:
    """The notebook's code as a syntax tree, IPython magics left out."""
    return ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in code_of(path).splitlines()))


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_notebooks_argue_and_the_library_computes(path):
    tree = code_tree(path)
    assert any(cell["cell_type"] == "markdown" for cell in read_cells(path)), "no prose"
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "no assert: what does it prove?"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ClassDef), f"class {node.name}: move it to the library"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("sys.path", "os.chdir"), f"{ast.unparse(node)}: paths come from sumlib.paths"
            assert node.attr not in ("backward", "zero_grad"), "a training loop: move it to sumlib.train"


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    cells = read_cells(path)
    dirty = [index for index, cell in enumerate(cells) if cell.get("outputs") or cell.get("execution_count")]
    assert not dirty, f"cells {dirty} hold outputs: jupyter nbconvert --clear-output --inplace notebooks/{path.name}"
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) <= 1, "more than one parameters cell"
