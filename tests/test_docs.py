"""The pages written by hand: links lead somewhere, commands exist, the README's tree is the package's."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sumlib.base.paths import ROOT, SAMPLE
from sumlib.data.images import read_image
from sumlib.model import Sum, load_sam, save_sum
from sumlib.pipeline.commands.main import build_parser

PAGES = ["README.md", "docs/method.md", "docs/datasets.md", "docs/own_data.md", "results/README.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", read(page)) + re.findall(r'src="([^"]+)"', read(page))
    dead = []
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert links and not dead, f"{page} links to {', '.join(dead)}"


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page):
    lines = [line for line in read(page).splitlines() if not line.startswith(("|", "!"))]
    long = [line for line in lines if len(line) > 110]
    assert not long, long


def test_the_tree_is_the_package():
    tree = re.search(r"```\nsumlib/\n(.*?)```", README, re.DOTALL).group(1)
    shown = set()
    for line in tree.splitlines():
        name, _, rest = line.strip().partition(" ")
        shown |= {name.rstrip("/")} | set(re.findall(r"\w+\.py", rest))
    entries = (ROOT / "sumlib").iterdir()
    there = {entry.name for entry in entries if not entry.name.startswith("_")}
    assert shown == there


def test_commands_exist():
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"\bmake (repro|test|lab|\w+(?=`))", README)) <= targets


def prose_of_notebooks() -> dict[str, str]:
    """The Markdown cells of each notebook, joined."""
    books = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        books[f"notebooks/{path.name}"] = "\n".join(prose)
    return books


WRITTEN = {page: read(page) for page in [*PAGES, "notebooks/README.md"]} | prose_of_notebooks()


@pytest.mark.parametrize("page", WRITTEN)
def test_stages_and_notebooks_that_are_named_exist(page):
    stages = yaml.safe_load(read("dvc.yaml"))["stages"]
    params = yaml.safe_load(read("params.yaml"))
    commands = re.findall(r"dvc\s+repro((?:\s+\w+@[\w-]+)+)", WRITTEN[page])
    targets = [target for command in commands for target in command.split()]
    unknown = []
    for target in targets:
        stage, _, key = target.partition("@")
        section = stages.get(stage, {}).get("foreach", "").strip("${}")
        if key not in params.get(section, {}):
            unknown.append(target)
    named = re.findall(r"\b(\w+\.ipynb)\b", WRITTEN[page])
    unknown += [name for name in named if not (ROOT / "notebooks" / name).is_file()]
    assert not unknown, f"{page} names {', '.join(unknown)}"


def test_the_pages_name_stages_and_notebooks():
    text = "\n".join(WRITTEN.values())
    assert text.count(".ipynb") > 20 and "dvc repro evaluate@" in text


def test_method_keeps_the_sections_that_the_code_cites():
    numbers = re.findall(r"^## (\d+)\. ", read("docs/method.md"), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)] and len(numbers) >= 10


def group_means() -> pd.Series:
    """Group averages from points, best of three: (model, train_set, task, rounds, metric, seed) -> points."""
    scores = pd.read_csv(ROOT / "results" / "metrics" / "per_dataset.csv")
    scores = scores.query("dataset == 'average' and prompt == 'point' and setting == 'oracle'")
    return scores.set_index(["model", "train_set", "task", "rounds", "metric", "seed"])["value"].sort_index()


def table_cells(page: str, first: str) -> list[list[str]]:
    """The rows of the page's table whose header begins with ``first``, without header and rule."""
    lines = page[page.index(f"\n{first}") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readmes_table_is_the_results():
    means, names = group_means(), {"human masks only": "Human-annotation-only"}
    rows = table_cells(README, "| model | salient, 1 point | 6 points |")
    assert len(rows) == 4
    for name, *cells in rows:
        model = names.get(name.split(":")[0], name.split(":")[0])
        train_set = "none" if model == "SAM" else "FT-Medium"
        places = [(task, rounds) for task in ("salient", "entity", "part") for rounds in (1, 6)]
        for (task, rounds), cell in zip(places, cells, strict=True):
            seeds = means[model, train_set, task, rounds, "mBIoU"]
            spread = f" ± {seeds.std():.1f}" if len(seeds) > 1 else ""
            assert cell == f"{seeds.mean():.1f}{spread}", f"{name}, {task}, {rounds} points"


def test_the_results_table_is_the_results():
    means = group_means()
    rows = table_cells(read("results/README.md"), "| model | set | seeds |")
    assert len(rows) == 10
    for model, train_set, count, *cells in rows:
        train_set = "none" if model == "SAM" else f"FT-{train_set}"
        places = [(task, rounds) for task in ("salient", "entity", "part") for rounds in (1, 3, 6)]
        for (task, rounds), cell in zip(places, cells, strict=True):
            seeds = [means[model, train_set, task, rounds, metric] for metric in ("mIoU", "mBIoU")]
            assert cell == " / ".join(f"{values.mean():.1f}" for values in seeds), (model, task, rounds)
            assert count in (str(len(seeds[0])), "–")


def test_commands_of_the_readme_are_understood():
    lines = re.findall(r"^sumlib [^\n#]+", README, re.MULTILINE)
    names = [build_parser().parse_args(shlex.split(line)[1:]).command for line in lines]
    assert set(names) == {"check", "masks", "predict", "export"}


def test_python_of_the_readme_runs(tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "sum.safetensors"
    sam = load_sam("micro", SAMPLE / "foundation" / "sam.safetensors")
    save_sum(path, Sum(sam), {"model_type": "micro"})
    image = read_image(SAMPLE / "internal" / "images" / sorted(os.listdir(SAMPLE / "internal" / "images"))[0])
    given = {"image": image, "points": np.array([[32, 32]]), "labels": np.array([1])}
    exec(snippet.replace("artifacts/finetune/sum-medium.safetensors", str(path)), given)
    assert given["masks"].shape == given["certainty"].shape == (3, *image.shape[:2])
    assert given["records"] and given["records"][0]["segmentation"].shape == image.shape[:2]
