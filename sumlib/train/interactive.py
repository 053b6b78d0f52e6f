"""One batch of fine-tuning: interactive rounds on masks that heed the uncertainty map (METHOD section 4), and what it is compared with.

Each step back-propagates and returns ``share`` times the mean losses of its first and last round.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sumlib.base.masks import jittered_boxes, resized
from sumlib.config.params import FinetuneConfig
from sumlib.config.runs import RunConfig
from sumlib.losses import dice_loss, focal_loss
from sumlib.methods.hq_sam import PROMPTS, noised_mask
from sumlib.methods.teacher import SecondDecoder, Teacher, strong_view
from sumlib.methods.u2pl import contrastive_loss
from sumlib.metrics import mask_iou
from sumlib.model.sum import Sum
from sumlib.sampler import sample_point
from sumlib.train.batches import Batch


def _first_prompt(
    batch: Batch, weight: Tensor | None, generator: torch.Generator, kind: str = "mixed"
) -> tuple[Tensor, Tensor]:
    """Round 1: (N, 2, 2) x, y and (N, 2) codes of `Sum.decode_codes`.

    ``kind`` "mixed": a box or a random positive point, 50/50 (METHOD section 5); "box"; "uniform-point": a point anywhere in the image.
    """
    n, device = len(batch.target), batch.target.device
    share = {"box": 1.0, "uniform-point": 0.0}.get(kind, 0.5)
    boxed = (torch.rand(n, generator=generator) < share).to(device)
    region = (
        (batch.pixels != 0).any(1)[batch.image] if kind == "uniform-point" else batch.target
    )  # padding is exactly zero
    point, found = sample_point(region, weight, generator=generator)
    point = torch.where((found | (batch.backup[:, 0] < 0))[:, None], point.float(), batch.backup)
    corners = jittered_boxes(batch.target, generator).view(n, 2, 2)
    xy = torch.where(boxed[:, None, None], corners, torch.stack([point, torch.zeros_like(point)], 1))
    return xy, torch.where(
        boxed[:, None], torch.tensor([[2, 3]], device=device), torch.tensor([[1, -1]], device=device)
    )


def _next_prompt(
    batch: Batch, prediction: Tensor, weight: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rounds 2 to R - 1: a point of the error region, (N, 1, 2) and its code (N, 1).

    Where the region is empty or has no certain pixel: the backup point for pseudo-labels, none for human masks.
    """
    point, found = sample_point(prediction != batch.target, weight, generator=generator)
    label = batch.target[torch.arange(len(point), device=point.device), point[:, 1], point[:, 0]].long()
    made = batch.backup[:, 0] >= 0
    point = torch.where((~found & made)[:, None], batch.backup, point.float())
    label = torch.where(found, label, torch.where(made, 1, -1))
    return point[:, None], label[:, None]


def mask_losses(logits: Tensor, batch: Batch, certainty: Tensor | None, config: FinetuneConfig) -> Tensor:
    """20 x focal + dice of each output, (N, K, S, S) -> (N, K), weighted by ``certainty`` (N, S, S) if given (eq. 1, 2)."""
    n, k = logits.shape[:2]
    spread = lambda m: m[:, None].expand(-1, k, -1, -1).flatten(0, 1)
    flat, target, weight = (
        logits.flatten(0, 1),
        spread(batch.target),
        None if certainty is None else spread(certainty),
    )
    loss = config.focal_weight * focal_loss(flat, target, weight) + config.dice_weight * dice_loss(
        flat, target, weight, threshold=config.theta
    )
    return loss.view(n, k)


def interactive_step(
    model: Sum,
    batch: Batch,
    run: RunConfig,
    config: FinetuneConfig,
    generator: torch.Generator,
    share: float = 1.0,
    *,
    rounds: int | None = None,
    first: tuple[Tensor, Tensor] | None = None,
    mask_input: Tensor | None = None,
    judge: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """One batch through all rounds, back-propagated round by round; returns ``share`` times the mean losses of the first and last round.

    ``rounds``, ``first`` prompts (N, P, 2), (N, P) and a first ``mask_input`` (N, 1, 4h, 4w) other than the configuration's, if given.
    ``judge`` gives the certainty (N, S, S) from the image embedding (B, C, h, w), where it is not known before.

    A single prompt (round 1) gets the three masks, of which only the best one is trained; later rounds get one mask.
    The decoder's graph of a round is freed before the next one starts; the encoder is back-propagated once.
    """
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=config.bf16):
        embedding = model.encode(batch.pixels).float()
    if judge:
        batch = replace(batch, certainty=judge(embedding.detach()))
    weight = batch.certainty if run.uncertainty_sampling else None
    leaf = (
        embedding.detach().requires_grad_()
    )  # index_select below: the gradient of leaf[...] adds in an order that varies with threads
    if run.contrast:
        _add_contrast(leaf, batch, run, config, generator, share)
    xy, codes = first or _first_prompt(batch, weight, generator)
    size, rows = batch.target.shape[-1], torch.arange(len(batch.target), device=batch.target.device)
    certainty, previous, losses = batch.certainty if run.uncertainty_loss else None, mask_input, []
    rounds = rounds or config.rounds
    for number in range(rounds):
        tasks = (
            batch.task
            if run.task_prompt == "continuous" or (run.task_prompt == "first" and number == 0)
            else None
        )
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=config.bf16):
            low, score = model.decode_codes(
                leaf.index_select(0, batch.image), xy, codes, mask_inputs=previous, tasks=tasks
            )
        low, score = (
            (low.float()[:, 1:], score.float()[:, 1:])
            if number == 0
            else (low.float()[:, :1], score.float()[:, :1])
        )
        logits = resized(low, (size, size))
        each = mask_losses(logits, batch, certainty, config)  # (N, K)
        best = each.detach().argmin(1)
        prediction = logits[rows, best].detach() > 0
        loss = (
            each[rows, best]
            + config.iou_weight * (score[rows, best] - mask_iou(prediction, batch.target)) ** 2
        ).mean() * share
        loss.backward()
        losses.append(loss.item())
        previous = low[rows, best].detach()[:, None]
        if number < rounds - 2:  # the last round brings no new point
            point, label = _next_prompt(batch, prediction, weight, generator)
            xy, codes = torch.cat([xy, point], 1), torch.cat([codes, label], 1)
    if embedding.requires_grad:
        embedding.backward(leaf.grad)
    return {"first_round": losses[0], "last_round": losses[-1]}


def _add_contrast(
    leaf: Tensor,
    batch: Batch,
    run: RunConfig,
    config: FinetuneConfig,
    generator: torch.Generator,
    share: float,
) -> None:
    """Add the gradient of U2PL's term on the pseudo-labels to the embedding's."""
    made = batch.backup[:, 0] >= 0
    if made.any():
        loss = contrastive_loss(
            leaf,
            batch.image[made],
            batch.target[made],
            batch.certainty[made],
            generator=generator,
            theta=config.theta,
        )
        (run.contrast * share * loss).backward()


def consistency_step(
    model: Sum,
    teacher: Teacher,
    batch: Batch,
    run: RunConfig,
    config: FinetuneConfig,
    generator: torch.Generator,
    share: float,
) -> dict[str, float]:
    """AugSeg on unlabeled images: the teacher's masks on the images as they are, learnt by the student on a strong view of them."""
    xy, codes = _first_prompt(batch, None, generator, run.consistency)
    target = teacher.predict(batch.pixels, batch.image, xy, codes, config.bf16)
    lesson = replace(
        batch,
        pixels=strong_view(batch.pixels, generator),
        target=target,
        certainty=torch.ones_like(batch.certainty),
    )
    rounds = config.rounds if run.consistency == "mixed-multi" else 1
    return interactive_step(model, lesson, run, config, generator, share, rounds=rounds, first=(xy, codes))


def hq_step(
    model: Sum, batch: Batch, run: RunConfig, config: FinetuneConfig, generator: torch.Generator, share: float
) -> dict[str, float]:
    """HQ-SAM's recipe: one round with a prompt of one random kind for the batch; its frozen IoU head is not trained."""
    n, device = len(batch.target), batch.target.device
    weight = batch.certainty if run.uncertainty_sampling else None
    kind, mask_input = PROMPTS[int(torch.randint(len(PROMPTS), (), generator=generator))], None
    if kind == "points":
        drawn = [sample_point(batch.target, weight, generator=generator) for _ in range(10)]
        xy = torch.stack(
            [
                torch.where((found | (batch.backup[:, 0] < 0))[:, None], point.float(), batch.backup)
                for point, found in drawn
            ],
            1,
        )
        xy, codes = (
            torch.cat([xy, torch.zeros_like(xy[:, :1])], 1),
            torch.tensor([[1] * 10 + [-1]], device=device).expand(n, -1),
        )
    elif kind == "box":
        xy, codes = (
            jittered_boxes(batch.target, generator).view(n, 2, 2),
            torch.tensor([[2, 3]], device=device).expand(n, -1),
        )
    else:
        grid = model.sam.prompt_encoder.mask_input_size[0]
        mask_input = noised_mask(batch.target, grid, generator)
        xy, codes = torch.zeros(n, 1, 2, device=device), torch.full((n, 1), -1, device=device)
    plain = replace(config, iou_weight=0.0)
    return interactive_step(
        model, batch, run, plain, generator, share, rounds=1, first=(xy, codes), mask_input=mask_input
    )


def agreement_step(
    model: Sum,
    other: Teacher | SecondDecoder,
    batch: Batch,
    run: RunConfig,
    config: FinetuneConfig,
    generator: torch.Generator,
    share: float,
) -> dict[str, float]:
    """`interactive_step` with the certainty of pseudo-labels from how far the model and the ``other`` one agree on their boxes.

    A second decoder learns here too, from prompts of its own.
    """
    made = batch.backup[:, 0] >= 0

    def judge(embedding: Tensor) -> Tensor:
        certainty = batch.certainty.clone()
        if made.any():
            certainty[made] = other.certainty(
                model, embedding, batch.pixels, batch.image[made], batch.target[made], config.bf16
            )
        if isinstance(other, SecondDecoder):
            plain = replace(
                run, uncertainty_loss=False, uncertainty_sampling=False, task_prompt="none", contrast=0.0
            )
            interactive_step(
                other.model, replace(batch, pixels=embedding), plain, config, generator, share, rounds=1
            )
        return certainty

    return interactive_step(model, batch, run, config, generator, share, judge=judge)
