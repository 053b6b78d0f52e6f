"""sumlib.pipeline.inputs: what a profile lacks is said at once, and real profiles refuse the micro world."""

import shutil
from dataclasses import replace

import pytest

from sumlib.base.paths import NOTEBOOKS, ROOT
from sumlib.config.params import load_config
from sumlib.config.schema import ConfigError
from sumlib.pipeline import inputs
from sumlib.pipeline.cells import NotebookError
from sumlib.pipeline.inputs import ADDRESSES, ROLES, check_inputs, is_micro_world
from sumlib.pipeline.notebook import main, run


@pytest.fixture
def paper(tmp_path):
    """The profile `paper` with an empty folder of data and one of checkpoints."""
    config = load_config("paper")

    def moved(model):
        return replace(model, checkpoint=str(tmp_path / "models" / model.checkpoint.split("/")[-1]))

    backbones = replace(
        config.backbones, vit_l=moved(config.backbones.vit_l), vit_b=moved(config.backbones.vit_b)
    )
    data = replace(config.data, root=str(tmp_path / "datasets"))
    return replace(config, model=moved(config.model), backbones=backbones, data=data)


def fill(config) -> None:
    """Folders and files of the names that the profile reads, empty."""
    for model in (config.model, config.backbones.vit_l, config.backbones.vit_b):
        path = ROOT / model.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for dataset in config.datasets.values():
        (config.data_root / dataset.folders[-1]).mkdir(parents=True, exist_ok=True)


def test_one_message_lists_all_that_is_missing_with_address_and_place(paper, tmp_path):
    with pytest.raises(ConfigError) as error:
        check_inputs(paper)
    message = str(error.value)
    used = [name for name, dataset in paper.datasets.items() if dataset.role != "additional"]
    assert message.startswith(f"profile paper lacks {len(used) + 3} of its inputs; get and put there:\n")
    for model in ("vit_h", "vit_l", "vit_b"):
        assert f"checkpoint {model}: {ADDRESSES[model]} -> {tmp_path}/models/" in message
    for name in used:
        assert f"data set {name}: {ADDRESSES.get(name, 'not public')}" in message
    assert f"-> {tmp_path}/datasets/test/DIS5K/DIS-VD/" in message
    fill(paper)
    check_inputs(paper)
    check_inputs(paper, "additional")


def test_a_notebook_asks_for_what_it_reads(paper):
    fill(paper)
    shutil.rmtree(paper.data_root / "test")
    for name in ("refine", "pseudo_label", "finetune", "tables"):
        check_inputs(paper, name)
    with pytest.raises(ConfigError, match="lacks 14 of its inputs"):
        check_inputs(paper, "evaluate")
    assert all((NOTEBOOKS / f"{name}.ipynb").is_file() for name in ROLES)


def test_real_profiles_refuse_the_micro_world_wherever_it_lies(paper, tmp_path):
    for folder in ("SA-1B-truth", "backbones"):
        shutil.copytree(ROOT / "sample" / folder, tmp_path / "copy" / folder)
    for root in (ROOT / "sample", tmp_path / "copy"):
        assert is_micro_world(root)
        config = replace(paper, data=replace(paper.data, root=str(root)))
        with pytest.raises(
            ConfigError, match="profile paper would run on the micro world in .*; put real data"
        ):
            check_inputs(config)
    assert not is_micro_world(tmp_path)


def test_the_micro_profiles_lack_nothing_or_name_the_remedy(tmp_path):
    check_inputs(load_config("smoke"), "additional")
    config = load_config("micro")
    config = replace(config, data=replace(config.data, root=str(tmp_path / "data")))
    with pytest.raises(ConfigError, match="run `dvc repro data.dvc`, which brings all of it:\n.*"):
        check_inputs(config)


def test_nothing_is_computed_before(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SUM_PROFILE", "paper")
    assert main(["check"]) == 1
    assert capsys.readouterr().err.startswith("error: profile paper lacks ")
    with pytest.raises(NotebookError, match="profile paper lacks"):
        run("evaluate", {}, tmp_path / "out.ipynb")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("SUM_PROFILE", "smoke")
    assert main(["check"]) == 0


def test_addresses_name_nothing_that_does_not_exist():
    config = load_config("paper")
    assert ADDRESSES.keys() <= {"vit_h", "vit_l", "vit_b", *config.datasets}
    assert all(address.startswith("https://") for address in inputs.ADDRESSES.values())
