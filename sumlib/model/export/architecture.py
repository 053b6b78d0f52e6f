"""Which SAM a set of weights is of, and an empty one of the same shapes.

Weights do not say their architecture, but their shapes do. A SAM for a smaller input side than its type's own
(1024 pixels for SAM's types) differs in a few shapes only: those of its position tables.
"""

from functools import cache

import torch
from segment_anything.modeling import Sam
from torch import nn

from sumlib.model.checkpoint import MODEL_TYPES, load_sam

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
