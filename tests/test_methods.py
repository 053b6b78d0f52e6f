"""A method is one file and one entry: a made-up one is trained for two steps; unknown names are refused."""

import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import sumlib.methods
from sumlib.base.paths import PARAMS
from sumlib.config.params import ConfigError, load_config
from sumlib.config.runs import method_names
from sumlib.finetune import finetune
from sumlib.methods.registry import load_method
from sumlib.model.checkpoint import CheckpointError, load_sum, save_sum
from sumlib.model.foundation import load_foundation
from sumlib.pipeline.smoke import pseudo_labels
from sumlib.train.method import Method

QUIET = '''
"""A model with one more weight, which alone is trained, and a term that counts its calls."""

import torch
from torch import nn

from sumlib.model.sum import Sum
from sumlib.train.interactive import interactive_step
from sumlib.train.method import Method
from sumlib.train.tuning import freeze_the_rest

CALLS = []


class QuietSum(Sum):
    architecture = "quiet"

    def __init__(self, sam, num_tasks=4):
        super().__init__(sam, num_tasks)
        self.loudness = nn.Parameter(torch.zeros(1))

    def encode(self, pixels):
        return super().encode(pixels) * self.loudness.exp()


class Quiet(Method):
    def build(self, sam):
        return QuietSum(sam)

    def parameter_groups(self, model):
        groups = [{"params": [model.loudness], "lr": 0.1, "weight_decay": 0.0}]
        freeze_the_rest(model, groups)
        return groups

    def learn(self, model, batch, generator, share=1.0):
        return interactive_step(model, batch, self.run, self.config, generator, share, term=self.term)

    def term(self, leaf, batch, generator, share):
        CALLS.append(share)
        (share * leaf.square().mean()).backward()


METHOD = Quiet
ARCHITECTURE = QuietSum
'''


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """The folder of methods has one more file."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "quiet.py").write_text(QUIET.strip() + "\n")
    monkeypatch.setattr(sumlib.methods, "__path__", sumlib.methods.__path__ + [str(tmp_path / "methods")])
    monkeypatch.setattr(sumlib.methods.__spec__, "submodule_search_locations", sumlib.methods.__path__)
    yield "quiet"
    sys.modules.pop("sumlib.methods.quiet", None)


def with_run(tmp_path: Path, **entry) -> Path:
    """params.yaml with one more run, "one-more"."""
    params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    run = {"model": "One more", "budget": "small", **entry}
    params["with_labels" if entry.get("unlabeled") else "human_only"]["one-more"] = run
    params["runs"]["one-more"] = run
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return tmp_path / "params.yaml"


def test_a_method_is_one_file_and_one_entry(quiet, tmp_path):
    entry = {"pseudo_labels": "small", "unlabeled": True, "task_prompt": "first"}
    config = load_config("smoke", with_run(tmp_path, method=quiet, **entry))
    run, labels = config.run("one-more"), pseudo_labels(config, tmp_path)
    model, log = finetune(config, run, labels)
    module = import_module("sumlib.methods.quiet")
    assert len(log) == len(module.CALLS) == config.finetune.iterations == 2  # its term was used
    foundation = load_foundation(config).state_dict()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in foundation.items())
    assert model.loudness.item() != 0  # and its parameter group
    plain, _ = finetune(config, replace(run, method="sum"), labels)
    assert not all(torch.equal(value, plain.state_dict()[key]) for key, value in foundation.items())
    save_sum(tmp_path / "quiet.safetensors", model, {"model_type": "micro"})
    again = load_sum(tmp_path / "quiet.safetensors")
    assert type(again) is module.QuietSum and torch.equal(again.loudness, model.loudness)


def test_methods_are_the_files_that_state_one(quiet):
    assert method_names() == ["sum", "augseg", "discrepancy", "hq_sam", "quiet", "u2pl"]
    assert load_method("sum") is Method
    for name in method_names()[1:]:
        assert issubclass(load_method(name), Method) and load_method(name) is not Method


@pytest.mark.parametrize("name", ["u2p", "teacher", "refiner_variants", "registry", "../u2pl"])
def test_an_unknown_method_is_refused_with_the_nearest_names(tmp_path, name):
    message = re.escape(f"human_only.one-more.method is {name!r}; the nearest are: ")
    with pytest.raises(ConfigError, match=message):
        load_config("smoke", with_run(tmp_path, method=name))
    with pytest.raises(ValueError, match="the nearest are: "):
        load_method(name)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "u2pl"}, "contrast is 0.0; allowed with method u2pl: above 0"),
        ({"method": "augseg"}, "consistency is 'none'; allowed with method augseg: mixed"),
        (
            {"method": "discrepancy"},
            "uncertainty is 'refinement'; allowed with method discrepancy: discrepancy or",
        ),
        ({"contrast": 1.0}, "contrast is 1.0; allowed: 0.0 without method: u2pl"),
        ({"consistency": "box"}, "consistency is 'box'; allowed: 'none' without method: augseg"),
        (
            {"uncertainty": "discrepancy", "uncertainty_loss": True},
            "uncertainty is 'discrepancy'; allowed without method: discrepancy",
        ),
        ({"method": "hq_sam", "tuning": "lora"}, "tuning is 'lora'; allowed: 'full' with method hq_sam"),
    ],
)
def test_options_without_their_method_and_methods_without_their_option_are_refused(tmp_path, entry, message):
    entry = {"pseudo_labels": "small", "unlabeled": True, **entry}
    with pytest.raises(ConfigError, match=re.escape(f"with_labels.one-more.{message}")):
        load_config("smoke", with_run(tmp_path, **entry))


def test_weights_that_are_no_numbers_are_refused_when_they_are_loaded(tmp_path):
    model = load_foundation(load_config("smoke"))
    with torch.no_grad():
        model.sam.mask_decoder.iou_token.weight[0, 3] = torch.nan
    save_sum(tmp_path / "broken.safetensors", model, {"model_type": "micro"})
    with pytest.raises(
        CheckpointError, match="broken.safetensors: sam.mask_decoder.iou_token.weight has NaN"
    ):
        load_sum(tmp_path / "broken.safetensors")
