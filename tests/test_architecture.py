"""The house: imports go one way, one module reads YAML, notebooks argue while the library computes."""

import ast
import doctest
import importlib
import subprocess
from pathlib import Path

import pytest

from sumlib.base.paths import NOTEBOOKS, ROOT
from sumlib.pipeline.cells import read_cells
from sumlib.pipeline.code import code_of

MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "sumlib").rglob("*.py"))
NOTEBOOK_FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


PUBLIC = {
    "sumlib.model": ["load_sam", "load_sum", "save_sum", "Sum", "SumPredictor", "SumMaskGenerator"],
    "sumlib.losses": ["focal_loss", "dice_loss"],
    "sumlib.uncertainty": ["uncertainty_map", "certainty_map"],
    "sumlib.sampler": ["sample_point", "first_click", "next_click", "boundary_click"],
    "sumlib.metrics": ["mask_iou", "boundary_iou"],
    "sumlib.refiner": ["Refiner", "train_refiner", "load_refiner", "save_refiner", "refine"],
    "sumlib.pseudo": ["AutomaticMasks", "PseudoLabels", "generate", "add_uncertainty"],
    "sumlib.train": ["fit", "Schedule", "fingerprint"],
    "sumlib.evaluate": ["evaluate_run", "interact"],
    "sumlib.data": ["open_dataset", "Dataset", "Sample", "REGISTRY", "TASK_GROUPS"],
    "sumlib.config": ["load_config", "Config", "RunConfig", "ConfigError"],
    "sumlib.finetune": ["finetune"],
}


def test_imports_go_one_way():
    done = subprocess.run(["lint-imports", "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(command):
    done = subprocess.run(["ruff", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run `make lint`\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", [path for path in MODULES if ">>> " in (ROOT / path).read_text()], ids=str)
def test_examples_in_docstrings_are_true(path):
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_stay_importable(module):
    found = importlib.import_module(module)
    missing = [name for name in PUBLIC[module] if not hasattr(found, name)]
    assert not missing, f"{module} no longer hands on {missing}, which others call"


def test_a_folder_shows_at_most_twenty_entries():
    for folder in [ROOT / "sumlib", *(p for p in (ROOT / "sumlib").rglob("*") if p.is_dir())]:
        entries = [entry.name for entry in folder.iterdir() if entry.name != "__pycache__"]
        assert len(entries) <= 20, f"{folder.name} has {len(entries)} entries: open a room for some"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_say_what_they_are_and_only_config_reads_yaml(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} has no docstring"
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "yaml" not in imports or path.parent == Path("sumlib/config"), (
        f"{path} reads YAML; sumlib.config does that"
    )


def code_tree(path: Path) -> ast.AST:
    """The notebook's code as a syntax tree, IPython magics left out."""
    return ast.parse(
        "\n".join("" if line.startswith(("%", "!")) else line for line in code_of(path).splitlines())
    )


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_notebooks_argue_and_the_library_computes(path):
    tree = code_tree(path)
    assert any(cell["cell_type"] == "markdown" for cell in read_cells(path)), "no prose"
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "no assert: what does it prove?"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ClassDef), f"class {node.name}: move it to the library"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("sys.path", "os.chdir"), (
                f"{ast.unparse(node)}: paths come from sumlib.base.paths"
            )
            assert node.attr not in ("backward", "zero_grad"), "a training loop: move it to sumlib.train.loop"


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    cells = read_cells(path)
    dirty = [index for index, cell in enumerate(cells) if cell.get("outputs") or cell.get("execution_count")]
    assert not dirty, (
        f"cells {dirty} hold outputs: jupyter nbconvert --clear-output --inplace notebooks/{path.name}"
    )
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) <= 1, (
        "more than one parameters cell"
    )
