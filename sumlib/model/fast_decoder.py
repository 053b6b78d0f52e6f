"""SAM's mask decoder, as it is and with fewer operations: the same numbers up to rounding.

Its cross-attention runs between a handful of tokens and many pixels, and SAM projects every pixel. Since the
projections are linear, they can be folded into the tokens instead. An image stays in rows of pixels (N, h w,
C) from beginning to end, so that its convolutions, whose kernels are as large as their strides, are matrix
products of rows, and channels are normalised along rows.
"""

from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F


class ExactMaskDecoder:
    """The steps of SAM's `MaskDecoder.predict_masks`, an image for each prompt: SAM's numbers bit for bit."""

    def __init__(self, sam: Sam):
        self.sam, self.decoder, self.prompt = sam, sam.mask_decoder, sam.prompt_encoder

    def attend(
        self, image: Tensor, tokens: Tensor, mask_inputs: Tensor | None = None, task: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, C) and images (N, C, h, w) attend to each other.

        ``mask_inputs`` (N, 1, 4h, 4w) are logits, ``task`` (N, C) is added to every pixel. Returns the new
        tokens (N, T, C) and the new images as rows (N, h w, C).
        """
        if task is not None:
            image = image + task[:, :, None, None]
        dense = (
            self.prompt.no_mask_embed.weight[:, :, None, None]
            if mask_inputs is None
            else self.prompt.mask_downscaling(mask_inputs)
        )
        position = self.position().expand(len(image), -1, -1, -1)
        return self.decoder.transformer(image + dense, position, tokens)

    def position(self) -> Tensor:
        """Positional encoding of the embedding's pixels (1, C, h, w), never in a lower precision."""
        with torch.autocast(self.sam.device.type, enabled=False):
            return self.prompt.get_dense_pe()

    def kernels(self, tokens: Tensor, outputs: Sequence[int] = range(4)) -> Tensor:
        """The new tokens (N, T, C) -> (N, K, C / 8), what each of the K ``outputs`` looks for."""
        mlps = self.decoder.output_hypernetworks_mlps
        return torch.stack([mlps[k](tokens[:, 1 + k]) for k in outputs], 1)

    def upscale(self, rows: Tensor, grid: tuple[int, int]) -> Tensor:
        """Rows (N, h w, C) of an image of ``grid`` (h, w) -> mask features (N, C / 8, 4h, 4w)."""
        return self.decoder.output_upscaling(rows.transpose(1, 2).reshape(len(rows), -1, *grid))

    def pixels(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """What `upscale` gave as (N, C / 8, 4h, 4w)."""
        return features

    def paint(self, kernels: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Logits (N, K, 4h, 4w) of kernels (N, K, C / 8) on what `upscale` gave."""
        return (kernels @ features.flatten(2)).unflatten(2, features.shape[2:])

    def iou(self, tokens: Tensor) -> Tensor:
        """Predicted IoU (N, 4) of the outputs from the new tokens (N, T, C)."""
        return self.decoder.iou_prediction_head(tokens[:, 0])


class FastMaskDecoder(ExactMaskDecoder):
    """The same steps with fewer operations; `attend` also takes one image (1, C, h, w) for N prompts."""

    def attend(
        self, image: Tensor, tokens: Tensor, mask_inputs: Tensor | None = None, task: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        dense = (
            self.prompt.no_mask_embed.weight[:, None]
            if mask_inputs is None
            else embed_masks(self.prompt, mask_inputs)
        )
        if task is not None:
            dense = dense + task[:, None]
        rows, position = (x.flatten(2).transpose(1, 2) for x in (image, self.position()))
        return attend(self.decoder.transformer, (rows + dense).contiguous(), position.contiguous(), tokens)

    def upscale(self, rows: Tensor, grid: tuple[int, int]) -> Tensor:
        """Rows (N, h w, C) -> mask features (N, 16 h w, C / 8), cell by cell; `pixels` puts them in order."""
        return mask_features(self.decoder, rows)

    def pixels(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return unfold(features, grid)

    def paint(self, kernels: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return unfold(features @ kernels.transpose(1, 2), grid)


def attend(
    transformer: TwoWayTransformer, image: Tensor, position: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """SAM's `TwoWayTransformer` on rows of pixels.

    ``image`` and ``position`` (N or 1, h w, C), ``tokens`` (N, T, C); returns new tokens and rows (N, h w,
    C). Under autocast the image is in the lower precision from the start, in place of one cast for each
    product.
    """
    device = image.device.type
    if torch.is_autocast_enabled(device):
        image, position = (x.to(torch.get_autocast_dtype(device)) for x in (image, position))
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.norm1(layer.self_attn(q=queries, k=queries, v=queries))
        else:
            placed = queries + tokens
            queries = layer.norm1(queries + layer.self_attn(q=placed, k=placed, v=queries))
        where = image + position
        queries = layer.norm2(
            queries + tokens_look(layer.cross_attn_token_to_image, queries + tokens, where, image)
        )
        queries = layer.norm3(queries + layer.mlp(queries))
        image = layer.norm4(
            pixels_look(layer.cross_attn_image_to_token, where, queries + tokens, queries, image)
        )
    seen = tokens_look(transformer.final_attn_token_to_image, queries + tokens, image + position, image)
    return transformer.norm_final_attn(queries + seen), image


def tokens_look(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SAM's attention of few tokens q (N, T, C) to many pixels k, v (N, P, C): (N, T, C).

    The pixels' projections are folded into the tokens: q . (W x + b) = (W^T q) . x + q . b, and the last term
    changes no softmax; sum_i a_i (W x_i + b) = W (sum_i a_i x_i) + b, as weights sum to one.
    """
    query = (
        _heads(attention, attention.q_proj(q)) @ _by_head(attention, attention.k_proj) * _scale(attention)
    )  # (N, h, T, C)
    weights = (query.flatten(1, 2) @ k.transpose(1, 2)).softmax(-1)  # (N, h T, P)
    mixed = (weights @ v).unflatten(1, (attention.num_heads, -1)) @ _by_head(
        attention, attention.v_proj
    ).transpose(1, 2)  # (N, h, T, c)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def pixels_look(attention: Attention, q: Tensor, k: Tensor, v: Tensor, image: Tensor) -> Tensor:
    """``image`` (N, P, C) plus SAM's attention of many pixels q (N, P, C) to few tokens k, v (N, T, C).

    Folded like `tokens_look`.
    """
    heads = attention.num_heads
    key = _heads(attention, attention.k_proj(k)) * _scale(attention)  # (N, h, T, c)
    bias = (key * attention.q_proj.bias.view(heads, 1, -1)).sum(-1, keepdim=True).flatten(1, 2)  # (N, h T, 1)
    scores = (key @ _by_head(attention, attention.q_proj)).flatten(1, 2) @ q.transpose(
        1, 2
    ) + bias  # (N, h T, P)
    weights = scores.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)
    out = attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # (h, c, C)
    value = (
        _heads(attention, attention.v_proj(v)) @ out + attention.out_proj.bias / heads
    )  # weights sum to one in each head
    return torch.baddbmm(image, weights.transpose(1, 2).to(image.dtype), value.flatten(1, 2).to(image.dtype))


def embed_masks(prompt: PromptEncoder, masks: Tensor) -> Tensor:
    """`PromptEncoder`'s embedding of mask prompts (N, 1, 4h, 4w), as rows (N, h w, C)."""
    first, norm1, act1, second, norm2, act2, last = prompt.mask_downscaling
    height, width = masks.shape[2] // 4, masks.shape[3] // 4
    cells = (
        masks.view(len(masks), height, 2, 2, width, 2, 2)
        .permute(0, 1, 4, 2, 5, 3, 6)
        .reshape(-1, height * width, 4, 4)
    )
    x = act1(_normalised(norm1, F.linear(cells, first.weight.flatten(1), first.bias)))  # (N, h w, 4, c)
    x = act2(
        _normalised(norm2, F.linear(x.flatten(2), second.weight.permute(0, 2, 3, 1).flatten(1), second.bias))
    )
    return F.linear(x, last.weight.flatten(1), last.bias)


def mask_features(decoder: MaskDecoder, image: Tensor) -> Tensor:
    """`MaskDecoder`'s upscaling of rows (N, h w, C): (N, 16 h w, C / 8).

    The 4 x 4 pixels of each cell follow one another; `unfold` puts them in order.
    """
    first, norm, act1, second, act2 = decoder.output_upscaling
    x = act1(_normalised(norm, _transposed(first, image)))  # (N, h w, 4, C / 4)
    return act2(_transposed(second, x)).flatten(1, 3)


def unfold(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Channels (N, 16 h w, K) in the order of `mask_features` -> (N, K, 4h, 4w), ``grid`` being (h, w)."""
    # h, w, then row and column of the coarser and of the finer of the two steps
    cells = features.unflatten(1, (*grid, 2, 2, 2, 2))
    return cells.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)


def _heads(attention: Attention, x: Tensor) -> Tensor:
    return x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)  # (N, h, T, c)


def _by_head(attention: Attention, projection: nn.Linear) -> Tensor:
    return projection.weight.unflatten(0, (attention.num_heads, -1))  # (h, c, C)


def _scale(attention: Attention) -> float:
    return (attention.internal_dim // attention.num_heads) ** -0.5


def _transposed(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2 on rows (..., C): (..., 4, c)."""
    return F.linear(x, layer.weight.permute(2, 3, 1, 0).flatten(0, 2), layer.bias.repeat(4)).unflatten(
        -1, (4, -1)
    )


def _normalised(norm: LayerNorm2d, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
