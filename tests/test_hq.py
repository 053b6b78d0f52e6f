"""HQ-SAM's architecture around a frozen SAM: what it adds, what it leaves alone, its prompts and its file."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from small import small_sum
from torch.nn import functional as F

from sumlib.config.params import load_config
from sumlib.methods.hq_sam import PROMPTS, HqSam, HqSum, noised_mask
from sumlib.model.checkpoint import CheckpointError, load_sum, read_metadata, save_sum
from sumlib.model.micro_sam import build_sam_micro

CONFIG = replace(load_config("smoke").finetune, light_lr=7.0)


def hq_sum(seed: int = 0) -> HqSum:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HqSum(small_sum(seed).sam).eval()


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def click(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[[10.0, 12.0], [0, 0]]]).expand(n, -1, -1), torch.tensor([[1, -1]]).expand(n, -1)


@torch.no_grad()
def test_without_its_mask_it_is_nearly_sam_and_with_it_the_sum():
    model = hq_sum()
    embedding = model.encode(pixels())
    channels = model.sam.prompt_encoder.embed_dim
    assert embedding.shape[1] == 3 * channels and torch.equal(
        embedding[:, :channels], model.sam.image_encoder(pixels())
    )
    both, score = model.decode_codes(embedding, *click())
    fine, _ = model.train().decode_codes(embedding, *click())
    assert fine.shape == both.shape and torch.equal(fine[:, :1].expand_as(fine), fine)
    for parameter in model.hq.mlp.layers[-1].parameters():
        parameter.zero_()
    plain, same = model.eval().decode_codes(embedding, *click())
    assert torch.allclose(both, plain + fine, atol=1e-4) and torch.equal(score, same) and fine.abs().max() > 0


@torch.no_grad()
def test_fused_features_by_hand():
    model = hq_sum()
    hq, encoder = model.hq, model.sam.image_encoder
    x = encoder.patch_embed(pixels()) + encoder.pos_embed
    for block in encoder.blocks:
        x = block(x)
        if block.window_size == 0:
            break
    fused = hq.early(x.permute(0, 3, 1, 2)) + hq.late(encoder(pixels()))
    folded = model.encode(pixels())[:, model.sam.prompt_encoder.embed_dim :]
    assert torch.allclose(F.pixel_shuffle(folded, 4), fused, atol=1e-5)
    token, features = torch.randn(2, 32), torch.randn(2, 4, 32, 32)
    expected = torch.einsum("nc,nchw->nhw", hq.mlp(token), hq.masks(features) + fused)
    assert torch.allclose(hq.mask(token, features, folded)[:, 0], expected, atol=1e-4)


@torch.no_grad()
def test_task_vectors_change_nothing_until_they_move_and_zero_never_does():
    model = hq_sum()
    embedding, tasks = model.encode(pixels()), torch.tensor([0, 2])
    before, _ = model.decode_codes(embedding, *click())
    assert torch.equal(model.decode_codes(embedding, *click(), tasks=tasks)[0], before)
    for table in (model.hq.task_token, model.hq.task_masks):
        table.weight[1:] += torch.randn(table.weight[1:].shape, generator=torch.Generator().manual_seed(2))
    after, _ = model.decode_codes(embedding, *click(), tasks=tasks)
    assert torch.allclose(after[0], before[0], atol=1e-5) and not torch.allclose(
        after[1], before[1], atol=1e-2
    )


@pytest.mark.parametrize("task_prompt", [False, True])
def test_only_the_head_is_trained(task_prompt):
    model = hq_sum()
    run = replace(load_config("smoke").run("hq-sam-small"), task_prompt="first" if task_prompt else "none")
    groups = HqSam(run, CONFIG).parameter_groups(model)
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving == {
        name
        for name in dict(model.named_parameters())
        if name.startswith("hq.") and (task_prompt or ".task_" not in name)
    }
    assert {group["lr"] for group in groups} == {7.0} and sum(
        len(group["params"]) for group in groups
    ) == len(moving)
    embedding = model.train().encode(pixels())
    logits, _ = model.decode_codes(embedding, *click(), tasks=torch.tensor([0, 1]))
    logits.pow(2).mean().backward()
    silent = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    assert not silent
    if task_prompt:
        assert not model.hq.task_token.weight.grad[0].any() and model.hq.task_token.weight.grad[1].any()


def test_saved_and_loaded(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HqSum(build_sam_micro()).eval()
    save_sum(tmp_path / "hq.safetensors", model, {"model_type": "micro"})
    again = load_sum(tmp_path / "hq.safetensors")
    assert type(again) is HqSum and read_metadata(tmp_path / "hq.safetensors")["architecture"] == "hq_sam"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.encode(image), again.encode(image))


def test_files_of_before_architectures_had_names_are_known_by_their_weights(tmp_path):
    model = HqSum(build_sam_micro())
    notes = {"sumlib": json.dumps({"model_type": "micro"})}
    save_file(model.state_dict(), tmp_path / "old.safetensors", metadata=notes)
    assert type(load_sum(tmp_path / "old.safetensors")) is HqSum


@pytest.mark.parametrize("name", ["hq_sum", "../evil", "u2pl"])
def test_an_unknown_architecture_is_refused(tmp_path, name):
    notes = {"sumlib": json.dumps({"model_type": "micro", "architecture": name})}
    save_file(HqSum(build_sam_micro()).state_dict(), tmp_path / "new.safetensors", metadata=notes)
    with pytest.raises(CheckpointError, match="new.safetensors: its architecture .* the nearest are: "):
        load_sum(tmp_path / "new.safetensors")


def test_noised_masks_are_wrong_near_the_outline_only():
    target = torch.zeros(20, 32, 32, dtype=torch.bool)
    target[:, 8:24, 8:24] = True
    found = noised_mask(target, 32, CONFIG.mask_noise, torch.Generator().manual_seed(0))
    wrong = (found[:, 0] > 0) != target
    inner, outer = torch.zeros(32, 32, dtype=torch.bool), torch.ones(32, 32, dtype=torch.bool)
    inner[12:20, 12:20], outer[5:27, 5:27] = True, False
    edge = wrong[:, 7:25, 7:25].float().mean()
    assert found.shape == (20, 1, 32, 32) and set(found.unique().tolist()) == {-4.0, 4.0}
    assert wrong[:, inner | outer].float().mean() < 0.05 and edge > 0.1 and len(PROMPTS) == 3
