"""SAM's image encoder in less memory, and for smaller inputs: the same weights, names and numbers.

`segment_anything` writes out a table of (h w)^2 numbers a head: 805 MB for a global block of ViT-B at 1024
pixels, several of them in a training step. Its bias by relative position is decomposed, b(i, j) = q_i .
R_row(i, j) + q_i . R_col(i, j), so it is a product itself: [q . R_row, q . R_col] . [onehot(row of j),
onehot(column of j)]. Appended to query and key it needs no table, and PyTorch's fused attention does the
rest.

Everything here changes the class of modules, never their weights: state dictionaries, hooks, adapters,
low-rank updates and copies stay as they are.
"""

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WIDTH_STEP = 8
"""Fused kernels of GPUs want heads whose width is a multiple of this; zeros are appended."""


def lighten(encoder: ImageEncoderViT, *, attention: bool = True, checkpointing: bool = False) -> None:
    """Change an image encoder in place, so that it needs less memory; results are equal up to rounding.

    Args:
        attention: no block writes out its attention. Windows gain little memory, but time.
        checkpointing: a training keeps the inputs of the blocks alone and computes each block a second time
            for its gradient. The results are the same bits.

    What is not asked for is undone, so the last call holds. Raises TypeError if a block is none of
    `segment_anything`'s.
    """
    for block in encoder.blocks:
        _require(block, Block, CheckpointedBlock)
        _require(block.attn, Attention, FoldedAttention)
    for block in encoder.blocks:
        block.__class__ = CheckpointedBlock if checkpointing else Block
        block.attn.__class__ = FoldedAttention if attention else Attention


def restore(encoder: ImageEncoderViT) -> None:
    """Undo `lighten`."""
    lighten(encoder, attention=False, checkpointing=False)


def is_light(encoder: ImageEncoderViT) -> tuple[bool, bool]:
    """Whether the encoder's attention is folded, and whether its blocks are checkpointed."""
    first = encoder.blocks[0]
    return isinstance(first.attn, FoldedAttention), isinstance(first, CheckpointedBlock)


def resize_input(sam: Sam, side: int) -> None:
    """Change a SAM in place, so that its frame is ``side`` x ``side`` pixels; a smaller one costs less.

    Half the side is a quarter of the time and memory. The weights keep their shapes, so that checkpoints load
    and save as ever, and can be used at the original side: the absolute position embedding is interpolated
    (bicubic) at each call, the relative positions of global blocks by `segment_anything` itself (linear).
    Gradients flow through both. With the original side everything is as it was, bit for bit. A
    `SamPredictor` must be made afterwards.

    Args:
        side: pixels, a multiple of the patch (16; 4 for micro models), at least two patches.

    Raises:
        ValueError: another side, or an encoder without absolute positions.
        TypeError: the encoder is none of `segment_anything`'s.
    """
    encoder, prompt = sam.image_encoder, sam.prompt_encoder
    _require(encoder, ImageEncoderViT, ResizedEncoder)
    if encoder.pos_embed is None:
        raise ValueError("this image encoder has no absolute positions: it can not be resized")
    patch = encoder.img_size // prompt.image_embedding_size[0]
    if side % patch or side < 2 * patch:
        raise ValueError(
            f"an input side of {side} pixels does not fit: allowed are multiples of {patch} "
            f"from {2 * patch} on"
        )
    grid = side // patch
    encoder.__class__ = ImageEncoderViT if grid == encoder.pos_embed.shape[1] else ResizedEncoder
    encoder.img_size = side
    prompt.image_embedding_size = (grid, grid)
    prompt.input_image_size = (side, side)
    prompt.mask_input_size = (4 * grid, 4 * grid)


class FoldedAttention(Attention):
    """SAM's attention over a grid, (B, h, w, C) -> (B, h, w, C), its bias folded into query and key."""

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        query, key, value = (
            self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        )  # (B, heads, h w, c) each
        channels = value.shape[-1]
        bias = self._bias(query, (height, width)) if self.use_rel_pos else None
        query = query * self.scale  # here, since the bias is not scaled
        if bias is not None:
            query, key, value = folded(query, key, value, bias, (height, width))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :channels]
        return self.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))

    def _bias(self, query: Tensor, grid: tuple[int, int]) -> Tensor:
        """Of queries (B, heads, h w, c): what each adds for a key's row, then for its column, (B, heads, h w,
        h + w).
        """
        height, width = grid
        at = query.unflatten(2, grid)  # (B, heads, h, w, c)
        rows, columns = get_rel_pos(height, height, self.rel_pos_h), get_rel_pos(width, width, self.rel_pos_w)
        row_bias, column_bias = (
            torch.einsum("bnhwc,hkc->bnhwk", at, rows),
            torch.einsum("bnhwc,wkc->bnhwk", at, columns),
        )
        return torch.cat([row_bias, column_bias], -1).flatten(2, 3)


def folded(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value whose attention without a bias is that of the given ones with it.

    Args:
        query, key, value: (B, heads, h w, c); the query scaled.
        bias: (B, heads, h w, h + w), added for a key's row, then for its column.
        grid: (h, w).

    Returns:
        Three of (B, heads, h w, c + h + w + zeros). The value is widened by zeros, too: fused attention on a
        CPU takes one width for all, and writes the table out otherwise.
    """
    height, width = grid
    row = torch.eye(height, dtype=key.dtype, device=key.device).repeat_interleave(width, 0)
    column = torch.eye(width, dtype=key.dtype, device=key.device).repeat(height, 1)
    place = torch.cat([row, column], 1).expand(*key.shape[:2], -1, -1)  # (B, heads, h w, h + w)
    zeros = -(key.shape[-1] + height + width) % WIDTH_STEP
    return (
        F.pad(torch.cat([query, bias.to(query.dtype)], -1), (0, zeros)),
        F.pad(torch.cat([key, place], -1), (0, zeros)),
        F.pad(value, (0, height + width + zeros)),
    )


class CheckpointedBlock(Block):
    """A block that keeps nothing but its input for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)


class ResizedEncoder(ImageEncoderViT):
    """An image encoder whose positions are interpolated to its input, (B, 3, S, S) -> (B, C, h, w)."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)  # (B, h, w, C)
        x = x + interpolated_positions(self.pos_embed, x.shape[1:3])
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


def interpolated_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings (1, h, w, C) on another ``grid``, bicubic; on their own one as they are."""
    if tuple(positions.shape[1:3]) == tuple(grid):
        return positions
    return F.interpolate(
        positions.permute(0, 3, 1, 2).float(), tuple(grid), mode="bicubic", align_corners=False
    ).permute(0, 2, 3, 1)


def _require(module: torch.nn.Module, *known: type) -> None:
    if type(module) not in known:
        raise TypeError(
            f"{type(module).__name__} is not {known[0].__name__} of segment_anything: its memory can not be "
            "reduced; set light_attention and checkpointing to false"
        )
