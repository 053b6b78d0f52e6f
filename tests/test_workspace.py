"""The small world: complete, built once, and a copy of its own for everyone who opens it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from sumlib.base.paths import ARTIFACTS, RESULTS
from sumlib.config.params import load_config
from sumlib.pipeline.smoke import RUNS
from sumlib.pipeline.workspace import open_workspace, prepared
from sumlib.report.results import load_results


def test_other_profiles_work_in_the_repository():
    assert open_workspace(load_config("micro")) == (ARTIFACTS, RESULTS)


def test_the_world_holds_what_earlier_stages_leave():
    config = load_config("smoke")
    artifacts, results = open_workspace(config)
    maps, masks = list(config.refiners), [labeller.masks for labeller in config.labellers.values()]
    assert "medium-sum" in maps and "masks-vit_b" in masks
    assert {path.stem for path in (artifacts / "refine").iterdir()} == set(maps)
    assert {path.stem for path in (artifacts / "pseudo_label").glob("*.parquet")} == {*maps, *masks}
    assert {path.stem for path in (artifacts / "finetune").iterdir()} == set(RUNS)
    table = load_results(artifacts / "evaluate")
    assert set(table["run"]) == set(config.runs) and table["iou"].between(0, 1).all()
    for name in maps:
        metrics = json.loads((results / "metrics" / f"refine-{name}.json").read_text())
        assert metrics["levels"].keys() == {"salient", "entity", "part"} and metrics["training"]


def test_what_one_writes_nobody_else_sees():
    first, second = (open_workspace(load_config("smoke"))[0] for _ in range(2))
    path = "evaluate/sam.parquet"
    before = pd.read_parquet(second / path)
    before.head(1).to_parquet(first / path)
    assert pd.read_parquet(second / path).equals(before)
    assert pd.read_parquet(open_workspace(load_config("smoke"))[0] / path).equals(before)


def test_of_several_that_ask_one_builds(tmp_path):
    world = tmp_path / "world"
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(prepared, world) for _ in range(2))
    assert first.result() == second.result() == world
    assert sorted(path.name for path in tmp_path.iterdir()) == ["world", "world.lock"]


def test_a_world_that_cannot_be_built_says_why(tmp_path):
    (tmp_path / "world.part").write_text("in the way")  # a file where the folder is made
    with pytest.raises(RuntimeError, match="the small world could not be built:"):
        prepared(tmp_path / "world")
    assert not (tmp_path / "world").exists()
