"""HQ-SAM: a head on a frozen SAM, and the recipe that trains it (docs/method.md section 7).

The head is one more output token, and mask features fused from early, late and decoder features. Its weights
are the only ones that are trained. Written after the paper "Segment Anything in High Quality".
"""

from dataclasses import replace

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.base.masks import jittered_boxes
from sumlib.config.params import FinetuneConfig, MaskNoiseConfig
from sumlib.model.fast_decoder import ExactMaskDecoder
from sumlib.model.prompts import Prompts
from sumlib.model.sum import NUM_TASKS, Sum
from sumlib.sampler import sample_point
from sumlib.train.batches import Batch
from sumlib.train.interactive import interactive_step
from sumlib.train.method import Method
from sumlib.train.tuning import decayed_groups, freeze_the_rest

PROMPTS = ("box", "points", "noised mask")
"""Kinds of prompt of HQ-SAM's training, one a step."""


class HqHead(nn.Module):
    """The HQ token, its MLP and the feature fusion.

    C is the width of SAM's embedding; the fused features have C / 8 channels at four times its size.
    ``task_token`` (tasks, C) is added to the HQ token and ``task_masks`` (tasks, C) to SAM's mask tokens:
    SUM's task prompt in this architecture. Both start at zero, and vector 0, "unspecified", stays there
    (docs/method.md section 1).
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
        """Images (B, 3, S, S) -> (B, 3 C, h, w): SAM's embedding, then the fused features.

        Those, (C / 8, 4 h, 4 w), are folded into 2 C channels.
        """
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
        """Logits (N, 1, 4h, 4w).

        From the HQ token's output (N, C), SAM's mask features (N, C / 8, 4h, 4w) and the folded fused ones
        (N, 2 C, h, w).
        """
        fused = self.masks(features) + F.pixel_shuffle(folded, 4)
        return (self.mlp(token)[:, None] @ fused.flatten(2)).unflatten(2, features.shape[2:])


class HqSum(Sum):
    """A SUM in HQ-SAM's architecture: in training all outputs are the HQ mask, else it is added to SAM's.

    Embeddings (B, 3 C, h, w) carry the fused features in further channels. The task vectors are those of the
    head.
    """

    architecture = "hq_sam"

    def __init__(self, sam: Sam, num_tasks: int = NUM_TASKS):
        head = HqHead(sam, num_tasks)  # before the task prompt, which draws random numbers as well
        super().__init__(sam, num_tasks)
        self.hq = head

    @property
    def task_vectors(self) -> Tensor:
        return self.hq.task_token.weight

    def encode(self, pixels: Tensor) -> Tensor:
        return self.hq.encode(self.sam, pixels)

    def split(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        width = self.sam.prompt_encoder.embed_dim
        return embeddings[:, :width], embeddings[:, width:]

    def output_tokens(self, tasks: Tensor | None, count: int) -> Tensor:
        """IoU, four masks, HQ mask: (count, 6, C)."""
        tokens, token = super().output_tokens(None, count), self.hq.token.weight.expand(count, -1, -1)
        if tasks is not None:
            tokens = torch.cat([tokens[:, :1], tokens[:, 1:] + self.hq.task_masks(tasks)[:, None]], 1)
            token = token + self.hq.task_token(tasks)[:, None]
        return torch.cat([tokens, token], 1)

    def image_task(self, tasks: Tensor | None) -> None:
        return None

    def paint(
        self,
        decoder: ExactMaskDecoder,
        hidden: Tensor,
        features: Tensor,
        extra: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        logits = super().paint(decoder, hidden, features, None, grid)
        fine = self.hq.mask(hidden[:, 5], decoder.pixels(features, grid), extra)
        return fine.expand_as(logits) if self.training else logits + fine


class HqSam(Method):
    """The head alone is trained, in one round, with a prompt of one random kind for the batch."""

    def build(self, sam: Sam) -> HqSum:
        return HqSum(sam)

    def parameter_groups(self, model: HqSum) -> list[dict]:
        """The head at ``light_lr``, its task vectors only if the run trains task prompts."""
        trained = hq_parameters(model.hq, self.run.task_prompt != "none")
        groups = decayed_groups(model, trained, self.config.light_lr, self.config.weight_decay)
        freeze_the_rest(model, groups)
        return groups

    def learn(
        self, model: HqSum, batch: Batch, generator: torch.Generator, share: float = 1.0
    ) -> dict[str, float]:
        """One round; the frozen IoU head is not trained."""
        weight = batch.certainty if self.run.uncertainty_sampling else None
        first, mask_input = random_prompt(batch, weight, model, self.config, generator)
        return interactive_step(
            model,
            batch,
            self.run,
            replace(self.config, iou_weight=0.0),
            generator,
            share,
            rounds=1,
            first=first,
            mask_input=mask_input,
        )


def random_prompt(
    batch: Batch, weight: Tensor | None, model: Sum, config: FinetuneConfig, generator: torch.Generator
) -> tuple[Prompts, Tensor | None]:
    """Prompts of one of `PROMPTS`, and for "noised mask" mask prompts (N, 1, 4h, 4w).

    Points are drawn by ``weight`` (N, S, S), if given.
    """
    kind = PROMPTS[int(torch.randint(len(PROMPTS), (), generator=generator))]
    if kind == "points":
        draws = [sample_point(batch.target, weight, generator=generator) for _ in range(config.hq_points)]
        points = [
            torch.where((found | ~batch.pseudo)[:, None], point.float(), batch.backup)
            for point, found in draws
        ]
        return Prompts.from_points(torch.stack(points, 1)), None
    if kind == "box":
        return Prompts.from_boxes(jittered_boxes(batch.target, generator, config.box_jitter)), None
    grid = model.sam.prompt_encoder.mask_input_size[0]
    nothing = Prompts.nothing(len(batch.target), batch.target.device)
    return nothing, noised_mask(batch.target, grid, config.mask_noise, generator)


def hq_parameters(head: HqHead, task_prompt: bool) -> list[nn.Parameter]:
    """What is trained: all of the head, the task vectors only if ``task_prompt``."""
    return [p for name, p in head.named_parameters() if task_prompt or not name.startswith("task_")]


def noised_mask(target: Tensor, size: int, config: MaskNoiseConfig, generator: torch.Generator) -> Tensor:
    """Mask prompts (N, 1, size, size), positive inside: targets with some pixels near their outline flipped.

    ``target`` (N, S, S) bool.
    """
    low = F.interpolate(target[:, None].float(), (size, size), mode="area")
    soft = F.avg_pool2d(F.pad(low, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    noise = torch.randn(soft.shape, generator=generator).to(soft.device)
    return torch.where(soft + config.noise * noise > 0.5, config.logit, -config.logit)


METHOD = HqSam
ARCHITECTURE = HqSum
