"""Who makes pseudo-labels: each labeller's own weights, and clear words where there is none."""

from dataclasses import replace

import pytest
import torch

from sumlib.config.params import load_config
from sumlib.model.checkpoint import save_sum
from sumlib.model.foundation import SELF, load_foundation, load_labeller

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


def test_sum_is_the_model_fine_tuned_before(tmp_path):
    config = replace(SMOKE, profile="micro")
    with pytest.raises(FileNotFoundError, match=f"{SELF}.safetensors"):
        load_labeller(config, "sum", tmp_path)
    sam = load_foundation(SMOKE)
    with torch.no_grad():
        sam.task_prompt.weight[1] = 1.0
    save_sum(tmp_path / "finetune" / f"{SELF}.safetensors", sam, {"model_type": "micro"})
    assert load_labeller(config, "sum", tmp_path).task_prompt.weight[1].eq(1).all()


def test_unknown_labellers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no labeller 'som'; the nearest are: sum, sam"):
        load_labeller(SMOKE, "som", tmp_path)
