"""Who makes pseudo-labels: each labeller's own weights, and clear words where there is none."""

from dataclasses import replace

import pytest
import torch

from sumlib.config.params import LabellerConfig, load_config
from sumlib.config.schema import ConfigError
from sumlib.model.checkpoint import save_sum
from sumlib.model.foundation import labeller_file, load_foundation, load_labeller

SMOKE = load_config("smoke")


def test_each_backbone_is_its_own_model():
    depths = {
        name: len(load_foundation(SMOKE, name).sam.image_encoder.blocks)
        for name in ("vit_h", "vit_l", "vit_b")
    }
    assert depths == {"vit_h": 6, "vit_l": 4, "vit_b": 2}
    assert torch.equal(
        load_labeller(SMOKE, "sam", None).sam.image_encoder.pos_embed,
        load_foundation(SMOKE).sam.image_encoder.pos_embed,
    )


def test_a_run_labels_with_its_fine_tuned_model(tmp_path):
    assert SMOKE.labellers["sum"].run == "sum-medium"
    with pytest.raises(FileNotFoundError, match=r"sum-medium\.safetensors"):
        load_labeller(SMOKE, "sum", tmp_path)
    sam = load_foundation(SMOKE)
    with torch.no_grad():
        sam.task_prompt.weight[1] = 1.0
    save_sum(tmp_path / "finetune" / "sum-medium.safetensors", sam, {"model_type": "micro"})
    assert load_labeller(SMOKE, "sum", tmp_path).task_prompt.weight[1].eq(1).all()


def test_a_new_labeller_is_an_entry(tmp_path):
    new = {
        "small": LabellerConfig("small", "masks-small", "data/backbones", backbone="vit_b"),
        "third": LabellerConfig("third", "masks-third", "artifacts/finetune", run="sum-large"),
    }
    config = replace(SMOKE, labellers=SMOKE.labellers | new)
    assert len(load_labeller(config, "small", tmp_path).sam.image_encoder.blocks) == 2
    assert labeller_file(config, "small", tmp_path).name == "micro_b.safetensors"
    assert labeller_file(config, "third", tmp_path) == tmp_path / "finetune" / "sum-large.safetensors"


def test_unknown_labellers_are_refused(tmp_path):
    for read in (load_labeller, labeller_file):
        with pytest.raises(
            ConfigError, match=r"no labeller 'som' in params\.yaml; the nearest are: sum, sam"
        ):
            read(SMOKE, "som", tmp_path)
