"""Which SAM a set of weights is of, and an empty one of the same shapes.

Weights do not say their architecture, but their shapes do. A SAM for a smaller input side than its type's own
(1024 pixels for SAM's types) differs in a few shapes only: those of its position tables. A SAM that
`resize_input` has made smaller has the tables of its type's own side and interpolates them at each call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import torch
from segment_anything.modeling import Sam
from torch import nn
from torch.nn import functional as F

from sumlib.model.checkpoint import MODEL_TYPES, load_sam
from sumlib.model.light_encoder import (
    interpolated_positions,
    is_light,
    resize_input,
    restore,
)

Shapes = dict[str, tuple[int, ...]]
POSITIONS = "image_encoder.pos_embed"


def shapes_of(state: dict) -> Shapes:
    """Name -> shape of all weights but those of adapters."""
    return {key: tuple(value.shape) for key, value in state.items() if ".adapter." not in key}


def known_type(shapes: Shapes) -> tuple[str, int] | None:
    """(model_type, input side in pixels) of SAM weights with these shapes, or None."""
    grid = shapes.get(POSITIONS, (0, 0))[1]
    for model_type in MODEL_TYPES:
        if grid and shapes == _shapes(model_type, grid):
            return model_type, grid * _patch(model_type)
    return None


@cache
def own_side(model_type: str) -> int:
    """Input side in pixels of a type as it is published."""
    return _empty(model_type).image_encoder.img_size


def tables_side(sam: Sam) -> int:
    """Input side in pixels that the position tables of a SAM are made for."""
    encoder = sam.image_encoder
    patch = encoder.img_size // sam.prompt_encoder.image_embedding_size[0]
    return encoder.pos_embed.shape[1] * patch


@contextmanager
def frame_of_tables(sam: Sam) -> Iterator[None]:
    """Undo `resize_input` for a while."""
    side, own = sam.image_encoder.img_size, tables_side(sam)
    if side != own:
        resize_input(sam, own)
    try:
        yield
    finally:
        if side != own:
            resize_input(sam, side)


@torch.no_grad()
def settled(sam: Sam) -> Sam:
    """The same computation in `segment_anything`'s own modules, with position tables of its input side.

    ``sam`` itself if it is that; else a SAM with a copy of its image encoder, from which `lighten` and
    `resize_input` are gone.
    """
    side = sam.image_encoder.img_size
    if side == tables_side(sam) and not any(is_light(sam.image_encoder)):
        return sam
    grid, encoder = sam.prompt_encoder.image_embedding_size[0], deepcopy(sam.image_encoder)
    mean, std = sam.pixel_mean.flatten().tolist(), sam.pixel_std.flatten().tolist()
    copy = Sam(encoder, deepcopy(sam.prompt_encoder), sam.mask_decoder, mean, std)
    restore(encoder)
    resize_input(copy, tables_side(sam))
    encoder.pos_embed = nn.Parameter(interpolated_positions(encoder.pos_embed, (grid, grid)))
    for block in encoder.blocks:
        if block.window_size == 0:  # windows do not depend on the image's size
            for name in ("rel_pos_h", "rel_pos_w"):
                table = getattr(block.attn, name).T[None]
                shorter = F.interpolate(table, size=2 * grid - 1, mode="linear")[0].T.contiguous()
                setattr(block.attn, name, nn.Parameter(shorter))
    resize_input(copy, side)
    return copy.eval()


def empty_sam(model_type: str, side: int) -> Sam:
    """A SAM on the device "meta": shapes without weights."""
    sam = _empty(model_type)
    if side != own_side(model_type):
        _resize(sam, side)
    return sam


def _empty(model_type: str) -> Sam:
    with torch.device("meta"):
        return load_sam(model_type)


@cache
def _patch(model_type: str) -> int:
    encoder = _empty(model_type).image_encoder
    return encoder.img_size // encoder.pos_embed.shape[1]


@cache
def _shapes(model_type: str, grid: int) -> Shapes:
    return shapes_of(empty_sam(model_type, grid * _patch(model_type)).state_dict())


def _resize(sam: Sam, side: int) -> None:
    """Give an empty SAM the shapes that belong to images of ``side`` pixels."""
    encoder, prompt = sam.image_encoder, sam.prompt_encoder
    grid = side * encoder.pos_embed.shape[1] // encoder.img_size
    vacant = lambda *shape: nn.Parameter(torch.empty(*shape, device="meta"))
    encoder.pos_embed = vacant(1, grid, grid, encoder.pos_embed.shape[3])
    for block in encoder.blocks:
        if block.window_size == 0:  # windows do not depend on the image's size
            for name in ("rel_pos_h", "rel_pos_w"):
                setattr(block.attn, name, vacant(2 * grid - 1, getattr(block.attn, name).shape[1]))
    encoder.img_size = side
    prompt.image_embedding_size, prompt.input_image_size = (grid, grid), (side, side)
    prompt.mask_input_size = (4 * grid, 4 * grid)
