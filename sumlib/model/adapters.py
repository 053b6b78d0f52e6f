"""Small modules for a frozen image encoder: bottleneck adapters (AIM) and low-rank updates (LoRA, as SAMed).

They are added to the blocks of `segment-anything`'s image encoder without changing its classes or the names
of its own weights. Both change nothing at first.
"""

import math

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """A bottleneck whose output is zero at first: (..., C) -> (..., C)."""

    def __init__(self, width: int, hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))

    def behind(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook: after the module, with a skip."""
        return output + self(output)

    def beside(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook: in parallel to the module."""
        return output + 0.5 * self(inputs[0])  # AIM's scale


def add_adapters(encoder: ImageEncoderViT, hidden: int, generator: torch.Generator | None = None) -> None:
    """Give every block an adapter behind its attention and one beside its MLP, ``hidden`` wide inside."""
    for block in encoder.blocks:
        width = block.norm1.normalized_shape[0]
        for module, place in ((block.attn, "behind"), (block.mlp, "beside")):
            module.adapter = Adapter(width, hidden, generator)
            module.register_forward_hook(getattr(module.adapter, place))


def adapter_width(encoder: ImageEncoderViT) -> int:
    """Inner width of the encoder's adapters, 0 if it has none."""
    first = getattr(encoder.blocks[0].attn, "adapter", None)
    return 0 if first is None else first.down.out_features


class LoraQKV(nn.Module):
    """A frozen projection to query, key and value (3 C, C) with an update of low rank for query and value."""

    def __init__(self, frozen: nn.Linear, rank: int, generator: torch.Generator | None = None):
        super().__init__()
        width = frozen.in_features
        self.frozen = frozen
        self.down = nn.Parameter(torch.empty(2, rank, width))
        self.up = nn.Parameter(torch.zeros(2, width, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def weight(self) -> Tensor:
        """(3 C, C), the update added."""
        query, value = self.up @ self.down
        return self.frozen.weight + torch.cat([query, torch.zeros_like(query), value])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.frozen.bias)


def add_lora(encoder: ImageEncoderViT, rank: int, generator: torch.Generator | None = None) -> None:
    """Give the query and value projections of every block an update of rank ``rank``."""
    for block in encoder.blocks:
        block.attn.qkv = LoraQKV(block.attn.qkv, rank, generator)


@torch.no_grad()
def merge_lora(encoder: ImageEncoderViT) -> None:
    """Add the updates to the weights for good: an ordinary encoder with the same output, bit for bit."""
    for block in encoder.blocks:
        if isinstance(block.attn.qkv, LoraQKV):
            lora = block.attn.qkv
            lora.frozen.weight.copy_(lora.weight())
            block.attn.qkv = lora.frozen


def light_parameters(encoder: ImageEncoderViT) -> list[nn.Parameter]:
    """The parameters of all adapters and low-rank updates, in the order of the blocks."""
    kinds = [
        (m.down, m.up) if isinstance(m, LoraQKV) else tuple(m.parameters())
        for m in encoder.modules()
        if isinstance(m, (Adapter, LoraQKV))
    ]
    return [parameter for kind in kinds for parameter in kind]
