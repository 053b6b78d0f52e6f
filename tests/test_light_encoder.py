"""The image encoder in less memory: SAM's numbers and gradients, its weights, and other input sides."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention, Block
from small import small_sum
from torch import nn

from sumlib.config.params import load_config
from sumlib.config.runs import RunConfig
from sumlib.methods.hq_sam import HqSum
from sumlib.model.adapters import add_adapters, add_lora
from sumlib.model.light_encoder import is_light, lighten, resize_input, restore
from sumlib.model.micro_sam import build_sam_micro
from sumlib.model.predictor import SumPredictor
from sumlib.model.sum import Sum
from sumlib.train.batches import Batch
from sumlib.train.interactive import interactive_step

LIGHT = [(True, False), (False, True), (True, True)]


def with_positions(encoder: ImageEncoderViT, seed: int = 3) -> ImageEncoderViT:
    """Positions that matter: segment_anything starts them at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if "rel_pos" in name or name == "pos_embed":
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return encoder


def vit_b(size: int, depth: int) -> ImageEncoderViT:
    """ViT-B's architecture for images of ``size`` pixels, its first ``depth`` blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ImageEncoderViT(
            img_size=size,
            depth=depth,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=tuple(k for k in (2, 5, 8, 11) if k < depth),
        )
    return with_positions(encoder)


def vit_b_sam(depth: int) -> Sam:
    """A SAM with the first ``depth`` blocks of ViT-B, for 1024 pixels, and SAM's decoder."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Sam(
            vit_b(1024, depth),
            PromptEncoder(256, (64, 64), (1024, 1024), 16),
            MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
        ).eval()


def micro() -> ImageEncoderViT:
    """Windows of 8 x 8 on a grid of 10 x 10: padded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_positions(build_sam_micro(size=40, width=32, depth=4, heads=2, channels=32).image_encoder)


def run(encoder: ImageEncoderViT, pixels: torch.Tensor, bf16: bool = False) -> tuple:
    """Output and all gradients of one training step, those of the pixels included."""
    encoder.zero_grad(set_to_none=True)
    pixels = pixels.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = encoder(pixels).float()
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    (output * weight).sum().backward()
    return output.detach(), {"pixels": pixels.grad} | {n: p.grad for n, p in encoder.named_parameters()}


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((a - b).abs().max() / a.abs().max()).item()


@pytest.mark.parametrize("attention, checkpointing", LIGHT)
@pytest.mark.parametrize("make, size", [(micro, 40), (lambda: vit_b(256, 3), 256)], ids=["micro", "vit_b"])
def test_outputs_and_gradients_are_those_of_the_encoder_as_it_comes(make, size, attention, checkpointing):
    encoder = make()
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    output, gradients = run(encoder, pixels)
    flat = deepcopy(encoder)
    with torch.no_grad():
        for name, p in flat.named_parameters():
            if "rel_pos" in name:
                p.zero_()
        assert far(output, flat(pixels)) > 0.01  # relative positions matter here
    lighten(encoder, attention=attention, checkpointing=checkpointing)
    light_output, light_gradients = run(encoder, pixels)
    assert far(output, light_output) < 1e-5
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert far(gradient, light_gradients[name]) < 1e-4, name
    if not attention:  # the same operations: the same bits
        assert torch.equal(output, light_output)
        assert all(torch.equal(g, light_gradients[name]) for name, g in gradients.items())


@pytest.mark.parametrize("make, size", [(micro, 40), (lambda: vit_b(256, 3), 256)], ids=["micro", "vit_b"])
def test_in_lower_precision_it_is_as_near_to_full_precision_as_sam_is(make, size):
    encoder = make()
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    exact, exact_gradients = run(encoder, pixels)
    sams, sams_gradients = run(encoder, pixels, bf16=True)
    lighten(encoder, checkpointing=True)
    light, light_gradients = run(encoder, pixels, bf16=True)
    off = lambda a, b: (a - b).norm().item()
    assert 0 < off(exact, light) < 1.2 * off(exact, sams)
    for name, gradient in exact_gradients.items():
        assert off(gradient, light_gradients[name]) <= 2 * off(gradient, sams_gradients[name]), name


def saved(work) -> list[torch.Tensor]:
    """What a computation keeps for its backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        work()
    return kept


def test_no_table_is_written_out():
    encoder, x = vit_b(512, 3), torch.randn(1, 32, 32, 768)
    largest = {}
    for attention in (False, True):
        lighten(encoder, attention=attention)
        kept = saved(lambda: encoder.blocks[2].attn(x))
        largest[attention] = max(tensor.numel() for tensor in kept)
    assert largest[False] == 12 * 1024 * 1024
    assert largest[True] <= 3 * 768 * 1024  # no more than query, key and value together


def test_checkpointing_keeps_the_inputs_of_blocks_alone():
    encoder, pixels, kept = vit_b(256, 3), torch.randn(1, 3, 256, 256), {}
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    for checkpointing in (False, True):
        lighten(encoder, checkpointing=checkpointing)
        output = []
        tensors = saved(lambda: output.append(encoder(pixels)))  # noqa: B023
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        kept[checkpointing] = sum(s.nbytes() for place, s in storages.items() if place not in weights)
    assert kept[True] < kept[False] / 5


def test_names_weights_hooks_and_copies_stay():
    model = small_sum()
    encoder, before = model.sam.image_encoder, deepcopy(model.state_dict())
    add_adapters(encoder, 4)
    add_lora(encoder, 2)
    with torch.no_grad():  # so that both change the output
        for name, p in encoder.named_parameters():
            if "adapter.up" in name or name.endswith("qkv.up"):
                p.normal_(generator=torch.Generator().manual_seed(1))
    pixels = torch.randn(1, 3, 32, 32)
    output, gradients = run(encoder, pixels)
    lighten(encoder, checkpointing=True)
    assert is_light(encoder) == (True, True)
    for same in (encoder, deepcopy(encoder)):
        light_output, light_gradients = run(same, pixels)
        assert far(output, light_output) < 1e-5
        assert all(far(g, light_gradients[n]) < 1e-4 for n, g in gradients.items() if g is not None)
    restore(encoder)
    assert is_light(encoder) == (False, False)
    assert all(type(block) is Block and type(block.attn) is Attention for block in encoder.blocks)
    assert torch.equal(encoder(pixels).detach(), output)
    plain = small_sum()
    lighten(plain.sam.image_encoder)
    assert plain.state_dict().keys() == before.keys()
    plain.load_state_dict(before)


def test_hq_sam_sees_the_early_features_of_a_light_encoder():
    sam, pixels = small_sum().sam, torch.randn(2, 3, 32, 32)
    model = HqSum(sam)
    output = model.encode(pixels)
    lighten(sam.image_encoder, checkpointing=True)
    light = model.encode(pixels)
    assert far(output, light) < 1e-5
    light.sum().backward()


def test_an_encoder_of_others_is_refused():
    encoder = small_sum().sam.image_encoder

    class Other(Attention):
        pass

    encoder.blocks[1].attn.__class__ = Other
    with pytest.raises(TypeError, match="Other is not Attention of segment_anything"):
        lighten(encoder)
    assert type(encoder.blocks[0]) is Block and is_light(encoder) == (False, False)


def test_the_original_side_changes_no_bit():
    model = small_sum()
    with_positions(model.sam.image_encoder)
    pixels = torch.randn(1, 3, 32, 32)
    output, place = model.encode(pixels), model.sam.prompt_encoder.get_dense_pe()
    resize_input(model.sam, 16)
    assert model.encode(pixels[..., :16, :16]).shape == (1, 32, 4, 4)
    resize_input(model.sam, 32)
    assert type(model.sam.image_encoder) is ImageEncoderViT
    assert torch.equal(model.encode(pixels), output)
    assert torch.equal(model.sam.prompt_encoder.get_dense_pe(), place)


def test_positions_of_another_side_are_those_of_the_same_places():
    """A position embedding that is linear in x and y stays so: the middle of each patch counts."""
    model = small_sum(size=64)
    encoder = model.sam.image_encoder
    middles = torch.arange(16) + 0.5
    with torch.no_grad():
        encoder.pos_embed.zero_()
        encoder.pos_embed[0, :, :, 0] = middles[None]
        encoder.pos_embed[0, :, :, 1] = middles[:, None]
    resize_input(model.sam, 32)
    seen = []
    encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = torch.randn(1, 3, 32, 32)
    model.encode(pixels)
    added = (seen[0] - encoder.patch_embed(pixels))[0].detach()
    wanted = 2 * (torch.arange(8) + 0.5)
    inner = slice(2, -2)  # bicubic repeats the outermost values
    assert torch.allclose(added[:, inner, 0], wanted[inner].expand(8, -1), atol=1e-3)
    assert torch.allclose(added[inner, :, 1], wanted[inner, None].expand(-1, 8), atol=1e-3)


@pytest.mark.parametrize("side, message", [(510, "multiples of 16 from 32 on"), (16, "from 32 on")])
def test_a_side_that_does_not_fit_is_refused(side, message):
    sam = vit_b_sam(1)
    with pytest.raises(ValueError, match=message):
        resize_input(sam, side)
    assert sam.image_encoder.img_size == 1024


def test_at_512_pixels_official_weights_load_and_everything_is_consistent():
    sam = vit_b_sam(3)
    shapes = {name: value.shape for name, value in sam.state_dict().items()}
    resize_input(sam, 512)
    lighten(sam.image_encoder, checkpointing=True)
    assert {name: value.shape for name, value in sam.state_dict().items()} == shapes
    sam.load_state_dict(vit_b_sam(3).state_dict())
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    official, ours = SamPredictor(sam), SumPredictor(Sum(sam))
    for predictor in (official, ours):
        predictor.set_image(image)
        assert predictor.features.shape == (1, 256, 32, 32)
    masks, scores, low = official.predict(np.array([[45, 30]]), np.array([1]), return_logits=True)
    assert masks.shape == (3, 60, 90) and low.shape == (3, 128, 128)
    assert np.array_equal(masks, ours.predict(np.array([[45, 30]]), np.array([1]), return_logits=True)[0])
    again = official.predict(np.array([[45, 30]]), np.array([1]), mask_input=low[:1], multimask_output=False)
    assert again[0].shape == (1, 60, 90)
    assert Sum(sam).preprocess(image).shape == (3, 512, 512)


def test_a_training_step_at_512_pixels_reaches_the_weights_in_their_official_shapes():
    model = Sum(vit_b_sam(3)).train()
    encoder = model.sam.image_encoder
    resize_input(model.sam, 512)
    lighten(encoder, checkpointing=True)
    target = torch.zeros(2, 512, 512, dtype=torch.bool)
    target[0, 100:300, 50:250] = target[1, 300:400, 200:500] = True
    batch = Batch(
        torch.randn(1, 3, 512, 512),
        torch.zeros(2, dtype=torch.long),
        target,
        torch.ones(target.shape),
        torch.full((2, 2), -1.0),
        torch.ones(2, dtype=torch.long),
    )
    run = RunConfig("test", "SUM", "small", task_prompt="first")
    config = replace(load_config("smoke").finetune, rounds=2, bf16=True)
    losses = interactive_step(model, batch, run, config, torch.Generator().manual_seed(0))
    assert all(0 < value < 100 for value in losses.values())
    for parameter, shape in [
        (encoder.pos_embed, (1, 64, 64, 768)),
        (encoder.blocks[2].attn.rel_pos_h, (127, 64)),
        (encoder.blocks[0].attn.rel_pos_w, (27, 64)),
        (model.task_prompt.weight, (4, 256)),
    ]:
        assert parameter.shape == parameter.grad.shape == shape
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0
