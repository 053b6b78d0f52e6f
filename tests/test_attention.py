"""The faster mask decoder: SAM's numbers and gradients up to rounding, by SAM's own parameters."""

import pytest
import torch
from small import small_sum

from sumlib.model.fast_decoder import attend, embed_masks, mask_features, pixels_look, tokens_look, unfold


@pytest.fixture(scope="module")
def sam():
    """With biases and norms that are not what they start as."""
    sam = small_sum(1).sam
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in sam.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return sam


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def rows(image: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) -> (N, h w, C)."""
    return image.flatten(2).transpose(1, 2)


def test_attention_of_few_tokens_is_sams_attention(sam, draw):
    layer, tokens, pixels = sam.mask_decoder.transformer.layers[0], draw(3, 7, 32), draw(3, 50, 32)
    with torch.no_grad():
        look = layer.cross_attn_token_to_image
        assert torch.allclose(
            tokens_look(look, tokens, pixels, 2 * pixels), look(tokens, pixels, 2 * pixels), atol=1e-5
        )
        look = layer.cross_attn_image_to_token
        assert torch.allclose(
            pixels_look(look, pixels, tokens, 2 * tokens, 3 * pixels),
            3 * pixels + look(pixels, tokens, 2 * tokens),
            atol=1e-5,
        )


def test_the_faster_transformer_has_the_same_outputs_and_gradients(sam, draw):
    transformer, found = sam.mask_decoder.transformer, []
    image, position, tokens = draw(2, 32, 8, 8), draw(2, 32, 8, 8), draw(2, 6, 32)
    for run in (
        lambda: transformer(image, position, tokens),
        lambda: attend(transformer, rows(image), rows(position), tokens),
    ):
        transformer.zero_grad()
        outputs = run()
        sum((out**2).sum() for out in outputs).backward()
        found.append(
            [
                *outputs,
                *(
                    torch.zeros_like(p) if p.grad is None else p.grad.clone()
                    for p in transformer.parameters()
                ),
            ]
        )
    for a, b in zip(
        *found, strict=True
    ):  # a bias of keys moves no softmax: its gradient is zero, or not even computed
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, a.abs().max().item()))


def test_masks_are_embedded_as_sam_does(sam, draw):
    masks = draw(2, 1, 24, 32)  # not square: rows and columns can not be confused
    with torch.no_grad():
        assert torch.allclose(
            embed_masks(sam.prompt_encoder, masks),
            rows(sam.prompt_encoder.mask_downscaling(masks)),
            atol=1e-5,
        )


def test_mask_features_are_sams(sam, draw):
    image = draw(2, 32, 6, 8)
    with torch.no_grad():
        assert torch.allclose(
            unfold(mask_features(sam.mask_decoder, rows(image)), (6, 8)),
            sam.mask_decoder.output_upscaling(image),
            atol=1e-5,
        )


def test_in_lower_precision_it_is_as_near_to_full_precision_as_sam_is(draw):
    model = small_sum(1)
    embedding, xy, codes, masks = (
        draw(4, 32, 8, 8),
        32 * draw(4, 2, 2).sigmoid(),
        torch.tensor([[1, -1]]).expand(4, -1),
        5 * draw(4, 1, 32, 32),
    )
    with torch.no_grad():
        exact = model.decode(embedding, points=xy[:, :1], labels=codes[:, :1], mask_inputs=masks)[0]
        with torch.autocast("cpu", torch.bfloat16):
            sams = model.decode(embedding, points=xy[:, :1], labels=codes[:, :1], mask_inputs=masks)[0]
            fast = model.decode_codes(embedding, xy, codes, mask_inputs=masks)[0]
    off = lambda logits: (logits.float() - exact).abs().mean().item()
    assert 0 < off(fast) < 2 * off(sams)
