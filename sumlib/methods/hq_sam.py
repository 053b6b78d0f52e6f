"""HQ-SAM's additions to a frozen SAM: one more output token, and mask features fused from early, late and decoder features.

Its weights are the only ones that HQ-SAM's recipe trains. Written after the paper "Segment Anything in High Quality".
"""

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

PROMPTS = ("box", "points", "noised mask")
"""Kinds of prompt of HQ-SAM's training, one a step."""


class HqHead(nn.Module):
    """The HQ token, its MLP and the feature fusion; C is SAM's embedding width, the fused features have C / 8 channels at four times its size.

    ``task_token`` (tasks, C) is added to the HQ token and ``task_masks`` (tasks, C) to SAM's mask tokens: SUM's task prompt in this
    architecture. Both start at zero, and vector 0, "unspecified", stays there (METHOD section 1).
    """

    def __init__(self, sam: Sam, num_tasks: int):
        super().__init__()
        width, early = sam.prompt_encoder.embed_dim, sam.image_encoder.blocks[0].norm1.normalized_shape[0]
        self.token = nn.Embedding(1, width)
        self.mlp = MLP(width, width, width // 8, 3)
        self.early = nn.Sequential(
            nn.ConvTranspose2d(early, width, 2, stride=2),
            LayerNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width // 8, 2, stride=2),
        )
        self.late = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
        )
        self.masks = nn.Sequential(
            nn.Conv2d(width // 8, width // 4, 3, padding=1),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 8, 3, padding=1),
        )
        self.task_token, self.task_masks = (nn.Embedding(num_tasks, width, padding_idx=0) for _ in range(2))
        for table in (self.task_token, self.task_masks):
            nn.init.zeros_(table.weight)

    def encode(self, sam: Sam, pixels: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> (B, 3 C, h, w): SAM's embedding, then the fused features (C / 8, 4 h, 4 w) folded into 2 C channels."""
        encoder, kept = sam.image_encoder, []
        first_global = next(k for k, block in enumerate(encoder.blocks) if block.window_size == 0)
        hook = encoder.blocks[first_global].register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )
        try:
            late = encoder(pixels)
        finally:
            hook.remove()
        fused = self.early(kept[0].permute(0, 3, 1, 2)) + self.late(late)
        return torch.cat([late, F.pixel_unshuffle(fused, 4)], 1)

    def mask(self, token: Tensor, features: Tensor, folded: Tensor) -> Tensor:
        """Logits (N, 1, 4h, 4w) from the HQ token's output (N, C), SAM's mask features (N, C / 8, 4h, 4w) and the folded fused ones (N, 2 C, h, w)."""
        fused = self.masks(features) + F.pixel_shuffle(folded, 4)
        return (self.mlp(token)[:, None] @ fused.flatten(2)).unflatten(2, features.shape[2:])


def hq_parameters(head: HqHead, task_prompt: bool) -> list[nn.Parameter]:
    """What is trained: all of the head, the task vectors only if ``task_prompt``."""
    return [p for name, p in head.named_parameters() if task_prompt or not name.startswith("task_")]


def noised_mask(target: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Mask prompts (N, 1, size, size) as logits of +-4: the targets (N, S, S) bool with pixels near their outline flipped at random."""
    low = F.interpolate(target[:, None].float(), (size, size), mode="area")
    soft = F.avg_pool2d(F.pad(low, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    noise = torch.randn(soft.shape, generator=generator).to(soft.device)
    return torch.where(soft + 0.25 * noise > 0.5, 4.0, -4.0)
