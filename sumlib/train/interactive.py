"""One batch: interactive rounds; losses and prompts trust certain pixels more (docs/method.md §4)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sumlib.base.masks import jittered_boxes, resized
from sumlib.config.params import FinetuneConfig
from sumlib.config.runs import RunConfig, nearest
from sumlib.losses import dice_loss, focal_loss
from sumlib.metrics import mask_iou
from sumlib.model.prompts import FOREGROUND, PADDING, Prompts
from sumlib.model.rounds import Round, interactive_rounds
from sumlib.model.sum import Sum
from sumlib.sampler import sample_point
from sumlib.train.batches import Batch

FIRST_PROMPTS = {"mixed": 0.5, "box": 1.0, "uniform-point": 0.0}
"""Kinds of first prompts in training, with their share of boxes."""

Term = Callable[[Tensor, Batch, torch.Generator, float], None]
"""A further loss: adds the gradient of ``share`` times it to the embeddings (B, C, h, w) of a batch."""


def first_prompt(
    batch: Batch, weight: Tensor | None, generator: torch.Generator, jitter: float, kind: str = "mixed"
) -> Prompts:
    """Prompts of round 1, a box (`jittered_boxes`) or a point for each mask.

    ``kind`` "mixed": a box or a random positive point, 50/50 (docs/method.md §5); "box"; "uniform-point": a
    point anywhere in the image. Raises ValueError for another kind.
    """
    if kind not in FIRST_PROMPTS:
        near = nearest(kind, list(FIRST_PROMPTS))
        raise ValueError(f"no kind of first prompt {kind!r}; the nearest are: {near}")
    n, device = len(batch.target), batch.target.device
    boxed = (torch.rand(n, generator=generator) < FIRST_PROMPTS[kind]).to(device)
    inside = (batch.pixels != 0).any(1)  # padding is exactly zero
    region = inside[batch.image] if kind == "uniform-point" else batch.target
    point, found = sample_point(region, weight, generator=generator)
    point = torch.where((found | ~batch.pseudo)[:, None], point.float(), batch.backup)
    boxes = Prompts.from_boxes(jittered_boxes(batch.target, generator, jitter))
    return Prompts.where(boxed, boxes, Prompts.from_points(point[:, None]))


def next_prompt(
    batch: Batch, prediction: Tensor, weight: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rounds 2 to R - 1: a point of the error region, (N, 1, 2) and its code (N, 1).

    Where the region is empty or has no certain pixel: the backup point for pseudo-labels, none for human
    masks.
    """
    point, found = sample_point(prediction != batch.target, weight, generator=generator)
    label = batch.target[torch.arange(len(point), device=point.device), point[:, 1], point[:, 0]].long()
    point = torch.where((~found & batch.pseudo)[:, None], batch.backup, point.float())
    label = torch.where(found, label, torch.where(batch.pseudo, FOREGROUND, PADDING))
    return point[:, None], label[:, None]


def mask_losses(logits: Tensor, batch: Batch, certainty: Tensor | None, config: FinetuneConfig) -> Tensor:
    """20 x focal + dice of outputs (N, K, S, S) -> (N, K), by ``certainty`` (N, S, S) if given (eq. 1, 2)."""
    n, k = logits.shape[:2]
    spread = lambda m: m[:, None].expand(-1, k, -1, -1).flatten(0, 1)
    flat, target = logits.flatten(0, 1), spread(batch.target)
    weight = None if certainty is None else spread(certainty)
    focal, dice = focal_loss(flat, target, weight), dice_loss(flat, target, weight, threshold=config.theta)
    loss = config.focal_weight * focal + config.dice_weight * dice
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
    first: Prompts | None = None,
    mask_input: Tensor | None = None,
    certainty_of: Callable[[Tensor], Tensor] | None = None,
    term: Term | None = None,
) -> dict[str, float]:
    """One batch through all rounds, back-propagated round by round.

    A single prompt (round 1) gets the three masks, of which only the best one is trained; later rounds get
    one. The decoder's graph of a round is freed before the next one starts; the encoder is back-propagated
    once.

    Args:
        share: factor of the losses.
        rounds: number of rounds, if not the configuration's.
        first: prompts of round 1, if not `first_prompt`.
        mask_input: mask prompts of round 1, (N, 1, 4h, 4w) logits.
        certainty_of: gives the certainty (N, S, S) from the embeddings (B, C, h, w), if not the batch's.
        term: a further loss on the embeddings.

    Returns:
        ``share`` times the mean losses of the first and the last round.
    """
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=config.bf16):
        embedding = model.encode(batch.pixels).float()
    if certainty_of:
        batch = replace(batch, certainty=certainty_of(embedding.detach()))
    weight = batch.certainty if run.uncertainty_sampling else None
    # index_select below: the gradient of leaf[...] adds in an order that varies with threads
    leaf = embedding.detach().requires_grad_()
    if term:
        term(leaf, batch, generator, share)
    size, rows = batch.target.shape[-1], torch.arange(len(batch.target), device=batch.target.device)
    certainty, losses = batch.certainty if run.uncertainty_loss else None, []
    rounds = rounds or config.rounds

    def decode(prompts: Prompts, shown: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
        given = run.task_prompt == "continuous" or (run.task_prompt == "first" and number == 0)
        own, tasks = leaf.index_select(0, batch.image), batch.task if given else None
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=config.bf16):
            low, score = model.decode_codes(own, prompts.xy, prompts.codes, mask_inputs=shown, tasks=tasks)
        return low.float(), score.float()

    def next_prompts(turn: Round) -> Prompts:
        if turn.number == rounds - 2:  # the last round brings no new point
            return turn.prompts
        return turn.prompts.add(*next_prompt(batch, turn.mask, weight, generator))

    first = first or first_prompt(batch, weight, generator, config.box_jitter)
    for turn in interactive_rounds(decode, first, rounds, next_prompts, mask_inputs=mask_input):
        logits = resized(turn.logits, (size, size))
        by_output = mask_losses(logits, batch, certainty, config)  # (N, K)
        best = by_output.detach().argmin(1)
        turn.take(best, logits[rows, best].detach() > 0)
        iou_error = (turn.score[rows, best] - mask_iou(turn.mask, batch.target)) ** 2
        loss = (by_output[rows, best] + config.iou_weight * iou_error).mean() * share
        loss.backward()
        losses.append(loss.item())
    if embedding.requires_grad:
        embedding.backward(leaf.grad)
    return {"first_round": losses[0], "last_round": losses[-1]}
