"""Smaller micro SAMs: what they inherit, what they learn, and the file they become."""

from dataclasses import replace

import pytest
import torch

from sumlib.config.params import load_config
from sumlib.micro.distill import BLOCKS, Distillation, write
from sumlib.micro.scene_store import make_store
from sumlib.model.checkpoint import load_sam, read_metadata
from sumlib.train.loop import Checkpoint

SHIPPED = load_config("smoke").pretrain
CONFIG = replace(
    SHIPPED["micro_b"],
    scenes=4,
    iterations=2,
    dense_only=1.0,
    images=2,
    prompts=2,
    workers=1,
    finish=1,
    finish_rounds=(2,),
    lr=1e-3,
)


@pytest.fixture(scope="module")
def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return load_sam("micro")


@pytest.fixture(scope="module")
def store():
    return make_store(4, seed=1, workers=1)


@pytest.mark.parametrize("model_type", BLOCKS)
def test_a_smaller_model_starts_from_some_of_the_larger_ones_blocks(model_type, teacher):
    config = replace(SHIPPED[model_type], workers=1)
    small, large = Distillation(config, False, teacher=teacher).model.sam, teacher.state_dict()
    for name, value in small.state_dict().items():
        parts = name.split(".")
        if name.startswith("image_encoder.blocks."):
            parts[2] = str(BLOCKS[model_type][int(parts[2])])
        assert torch.equal(value, large[".".join(parts)]), name
    kinds = [block.window_size for block in small.image_encoder.blocks]
    assert kinds == [teacher.image_encoder.blocks[k].window_size for k in BLOCKS[model_type]]


class Watching(Distillation):
    """Keeps the weights after each iteration."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.states = []

    def __call__(self, step, rows):
        self.states.append({name: value.clone() for name, value in self.model.state_dict().items()})


class Dying(Distillation):
    """Killed in its second iteration."""

    def begin(self, number):
        super().begin(number)
        if number == 1:
            raise KeyboardInterrupt


def test_it_learns_the_embeddings_then_the_masks_and_resumes(teacher, store, tmp_path):
    whole = Watching(CONFIG, False, teacher=teacher)
    log = whole.fit(store, every=1)
    start, _, dense, end = whole.states
    decoder, encoder = "sam.mask_decoder.mask_tokens.weight", "sam.image_encoder.blocks.1.attn.qkv.weight"
    shrunk = dense[decoder] / start[decoder]  # embeddings alone so far: the decoder does not learn, it decays
    assert shrunk.min() > 0.9 and shrunk.max() < 1 and shrunk.max() - shrunk.min() < 1e-5
    assert not torch.equal(dense[encoder], start[encoder]) and not torch.equal(end[decoder], start[decoder])
    checkpoint = Checkpoint(tmp_path / "last.pt")
    with pytest.raises(KeyboardInterrupt):
        Dying(CONFIG, False, teacher=teacher).fit(store, every=1, checkpoint=checkpoint)
    resumed = Distillation(CONFIG, False, teacher=teacher)
    assert resumed.fit(store, every=1, checkpoint=checkpoint).equals(log)
    assert all(torch.equal(end[name], value) for name, value in resumed.model.state_dict().items())
    assert all(
        torch.equal(a, b)
        for a, b in zip(teacher.state_dict().values(), whole.teacher.sam.state_dict().values())
    )


def test_half_precision_is_enough(teacher, tmp_path):
    state = Distillation(CONFIG, False, teacher=teacher)
    expected = {name: value.clone() for name, value in state.model.sam.state_dict().items()}
    write(tmp_path / "b.safetensors", state.model.sam, CONFIG)
    again = load_sam("micro_b", tmp_path / "b.safetensors").state_dict()
    assert all(
        torch.allclose(again[name], value, rtol=1e-3, atol=1e-4) and again[name].dtype == torch.float32
        for name, value in expected.items()
    )
    assert read_metadata(tmp_path / "b.safetensors")["config"]["type"] == "micro_b"
