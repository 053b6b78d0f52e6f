"""Interactive fine-tuning on human masks and pseudo-labels, heeding the uncertainty map (METHOD sections 4 and 5).

The same step trains every model of the comparison; a `RunConfig` says which losses, labels, prompts and task prompts it
uses. All of them see the same number of prompts an iteration.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.config import Config, FinetuneConfig, RunConfig
from sumlib.contrast import contrastive_loss
from sumlib.data import Dataset, open_dataset
from sumlib.hq import PROMPTS, noised_mask
from sumlib.losses import dice_loss, focal_loss
from sumlib.masks import framed, jittered_boxes
from sumlib.metrics import mask_iou
from sumlib.model import Sum, best_device, decoder_copy, load_sam
from sumlib.pseudo import PseudoLabels
from sumlib.sampler import sample_point
from sumlib.teacher import Teacher, box_probability, strong_view
from sumlib.train import Schedule, fingerprint, fit
from sumlib.tuning import finish, parameter_groups, prepare


@dataclass(frozen=True)
class Batch:
    """B images and N prompts' targets in the model's input frame of S x S pixels."""

    pixels: Tensor
    """(B, 3, S, S) float32, normalised and padded."""
    image: Tensor
    """(N,) index of each target's image."""
    target: Tensor
    """(N, S, S) bool."""
    certainty: Tensor
    """(N, S, S) float32 in [0, 1]; one for human masks."""
    backup: Tensor
    """(N, 2) x, y of the point that made the pseudo-label; -1 for human masks."""
    task: Tensor
    """(N,) task ids."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Source(Protocol):
    """Draws one image with ``prompts`` of its masks, with replacement if it has fewer."""

    def draw(self, model: Sum, prompts: int, generator: torch.Generator) -> Batch: ...


def _choose(weights: Tensor, prompts: int, generator: torch.Generator) -> np.ndarray:
    """``prompts`` indices drawn with probability ``weights`` (M,): without repeats as far as they go."""
    count = len(weights)
    rounds = [torch.multinomial(weights, count, generator=generator) for _ in range(-(-prompts // count))]
    return torch.cat(rounds)[:prompts].numpy()


class HumanSource:
    """Images of human-annotated sets, each equally likely (METHOD section 6)."""

    def __init__(self, datasets: Sequence[Dataset]):
        self.datasets = [d.good() for d in datasets]
        self.starts = np.cumsum([0, *(len(d) for d in self.datasets)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def draw(self, model: Sum, prompts: int, generator: torch.Generator) -> Batch:
        index = int(torch.randint(len(self), (), generator=generator))
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        sample = self.datasets[which][index - self.starts[which]]
        masks = sample.masks[_choose(torch.ones(len(sample.masks)), prompts, generator)]
        target = framed(masks, model.sam.image_encoder.img_size) > 0.5
        return Batch(model.preprocess(sample.image)[None].cpu(), torch.zeros(prompts, dtype=torch.long), target,
                     torch.ones(target.shape), torch.full((prompts, 2), -1.0), torch.full((prompts,), sample.task))  # fmt: skip


class PseudoSource:
    """Unlabeled images with SAM's masks, or the refined ones, and their certainty (METHOD sections 2 and 3).

    A mask is drawn with probability 1 / area. SA-1B has a hundred masks an image, most of them small; where SAM finds only a
    handful, drawing them evenly would show the model mostly whole objects.
    """

    def __init__(self, images: Dataset, labels: PseudoLabels, kind: str):
        numbers = {name: i for i, name in enumerate(images.names)}
        self.images, self.labels, self.kind = images, labels, kind
        usable = [name for name in labels.images if kind == "sam" or labels[name].refined.any()]
        self.numbers = [numbers[name] for name in usable]
        if len(usable) < len(labels.images):
            print(f"{images.name}: {len(labels.images) - len(usable)} images are left out, all their refined masks are empty")

    def __len__(self) -> int:
        return len(self.numbers)

    def draw(self, model: Sum, prompts: int, generator: torch.Generator) -> Batch:
        sample = self.images[self.numbers[int(torch.randint(len(self), (), generator=generator))]]
        label = self.labels[sample.name]
        masks = label.masks if self.kind == "sam" else label.refined
        area = masks.sum((1, 2))
        usable = np.flatnonzero(area)
        chosen = usable[_choose(torch.from_numpy(1 / area[usable]), prompts, generator)]
        side = model.sam.image_encoder.img_size
        target = framed(masks[chosen], side) > 0.5
        backup = model.to_input_frame(torch.from_numpy(label.points[chosen]).float(), sample.image.shape[:2])
        return Batch(model.preprocess(sample.image)[None].cpu(), torch.zeros(prompts, dtype=torch.long), target,
                     framed(label.certainty[chosen], side), backup, torch.zeros(prompts, dtype=torch.long))  # fmt: skip


def collate(parts: Sequence[Batch]) -> Batch:
    """One batch of several images."""
    image = torch.cat([part.image + b for b, part in enumerate(parts)])
    return Batch(image=image, **{name: torch.cat([getattr(part, name) for part in parts])
                                 for name in ("pixels", "target", "certainty", "backup", "task")})  # fmt: skip


def _first_prompt(batch: Batch, weight: Tensor | None, generator: torch.Generator, kind: str = "mixed") -> tuple[Tensor, Tensor]:
    """Round 1: (N, 2, 2) x, y and (N, 2) codes of `Sum.decode_codes`.

    ``kind`` "mixed": a box or a random positive point, 50/50 (METHOD section 5); "box"; "uniform-point": a point anywhere in the image.
    """
    n, device = len(batch.target), batch.target.device
    share = {"box": 1.0, "uniform-point": 0.0}.get(kind, 0.5)
    boxed = (torch.rand(n, generator=generator) < share).to(device)
    region = (batch.pixels != 0).any(1)[batch.image] if kind == "uniform-point" else batch.target  # padding is exactly zero
    point, found = sample_point(region, weight, generator=generator)
    point = torch.where((found | (batch.backup[:, 0] < 0))[:, None], point.float(), batch.backup)
    corners = jittered_boxes(batch.target, generator).view(n, 2, 2)
    xy = torch.where(boxed[:, None, None], corners, torch.stack([point, torch.zeros_like(point)], 1))
    return xy, torch.where(boxed[:, None], torch.tensor([[2, 3]], device=device), torch.tensor([[1, -1]], device=device))


def _next_prompt(batch: Batch, prediction: Tensor, weight: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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
    spread = lambda m: m[:, None].expand(-1, k, -1, -1).flatten(0, 1)  # noqa: E731
    flat, target, weight = logits.flatten(0, 1), spread(batch.target), None if certainty is None else spread(certainty)
    loss = config.focal_weight * focal_loss(flat, target, weight) + config.dice_weight * dice_loss(flat, target, weight, threshold=config.theta)
    return loss.view(n, k)


def interactive_step(
    model: Sum, batch: Batch, run: RunConfig, config: FinetuneConfig, generator: torch.Generator, share: float = 1.0, *,
    rounds: int | None = None, first: tuple[Tensor, Tensor] | None = None, mask_input: Tensor | None = None,
    judge: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:  # fmt: skip
    """One batch through all rounds, back-propagated round by round; returns ``share`` times the mean losses of the first and last round.

    ``rounds``, ``first`` prompts (N, P, 2), (N, P) and a first ``mask_input`` (N, 1, 4h, 4w) other than the configuration's, if given.
    ``judge`` gives the certainty (N, S, S) from the image embedding (B, C, h, w), where it is not known before.

    A single prompt (round 1) gets the three masks, of which only the best one is trained; later rounds get one mask.
    The decoder's graph of a round is freed before the next one starts; the encoder is back-propagated once.
    """
    size, rows = batch.target.shape[-1], torch.arange(len(batch.target), device=batch.target.device)
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=config.bf16):
        embedding = model.encode(batch.pixels).float()
    if judge:
        batch = replace(batch, certainty=judge(embedding.detach()))
    certainty = batch.certainty if run.uncertainty_loss else None
    weight = batch.certainty if run.uncertainty_sampling else None
    leaf = embedding.detach().requires_grad_()  # index_select below: the gradient of leaf[...] adds in an order that varies with threads
    if run.contrast:
        _add_contrast(leaf, batch, run, config, generator, share)
    xy, codes = first or _first_prompt(batch, weight, generator)
    rounds, previous, losses = rounds or config.rounds, mask_input, []
    for number in range(rounds):
        tasks = batch.task if run.task_prompt == "continuous" or (run.task_prompt == "first" and number == 0) else None
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=config.bf16):
            low, score = model.decode_codes(leaf.index_select(0, batch.image), xy, codes, mask_inputs=previous, tasks=tasks)
        low, score = (low.float()[:, 1:], score.float()[:, 1:]) if number == 0 else (low.float()[:, :1], score.float()[:, :1])
        logits = low if low.shape[-1] == size else F.interpolate(low, (size, size), mode="bilinear", align_corners=False)
        each = mask_losses(logits, batch, certainty, config)  # (N, K)
        best = each.detach().argmin(1)
        prediction = logits[rows, best].detach() > 0
        loss = (each[rows, best] + config.iou_weight * (score[rows, best] - mask_iou(prediction, batch.target)) ** 2).mean() * share
        loss.backward()
        losses.append(loss.item())
        previous = low[rows, best].detach()[:, None]
        if number < rounds - 2:  # the last round brings no new point
            point, label = _next_prompt(batch, prediction, weight, generator)
            xy, codes = torch.cat([xy, point], 1), torch.cat([codes, label], 1)
    if embedding.requires_grad:
        embedding.backward(leaf.grad)
    return {"first_round": losses[0], "last_round": losses[-1]}


def _add_contrast(leaf: Tensor, batch: Batch, run: RunConfig, config: FinetuneConfig, generator: torch.Generator, share: float) -> None:
    """Add the gradient of U2PL's term on the pseudo-labels to the embedding's."""
    made = batch.backup[:, 0] >= 0
    if made.any():
        loss = contrastive_loss(leaf, batch.image[made], batch.target[made], batch.certainty[made], generator=generator, theta=config.theta)
        (run.contrast * share * loss).backward()


def consistency_step(
    model: Sum, teacher: Teacher, batch: Batch, run: RunConfig, config: FinetuneConfig, generator: torch.Generator, share: float
) -> dict[str, float]:
    """AugSeg on unlabeled images: the teacher's masks on the images as they are, learnt by the student on a strong view of them."""
    xy, codes = _first_prompt(batch, None, generator, run.consistency)
    target = teacher.predict(batch.pixels, batch.image, xy, codes, config.bf16)
    lesson = replace(batch, pixels=strong_view(batch.pixels, generator), target=target, certainty=torch.ones_like(batch.certainty))
    rounds = config.rounds if run.consistency == "mixed-multi" else 1
    return interactive_step(model, lesson, run, config, generator, share, rounds=rounds, first=(xy, codes))


def hq_step(model: Sum, batch: Batch, run: RunConfig, config: FinetuneConfig, generator: torch.Generator, share: float) -> dict[str, float]:
    """HQ-SAM's recipe: one round with a prompt of one random kind for the batch; its frozen IoU head is not trained."""
    n, device = len(batch.target), batch.target.device
    weight = batch.certainty if run.uncertainty_sampling else None
    kind, mask_input = PROMPTS[int(torch.randint(len(PROMPTS), (), generator=generator))], None
    if kind == "points":
        drawn = [sample_point(batch.target, weight, generator=generator) for _ in range(10)]
        xy = torch.stack([torch.where((found | (batch.backup[:, 0] < 0))[:, None], point.float(), batch.backup) for point, found in drawn], 1)
        xy, codes = torch.cat([xy, torch.zeros_like(xy[:, :1])], 1), torch.tensor([[1] * 10 + [-1]], device=device).expand(n, -1)
    elif kind == "box":
        xy, codes = jittered_boxes(batch.target, generator).view(n, 2, 2), torch.tensor([[2, 3]], device=device).expand(n, -1)
    else:
        grid = model.sam.prompt_encoder.mask_input_size[0]
        mask_input = noised_mask(batch.target, grid, generator)
        xy, codes = torch.zeros(n, 1, 2, device=device), torch.full((n, 1), -1, device=device)
    plain = replace(config, iou_weight=0.0)
    return interactive_step(model, batch, run, plain, generator, share, rounds=1, first=(xy, codes), mask_input=mask_input)


def sources(config: Config, run: RunConfig, labels: Path | None) -> tuple[HumanSource, PseudoSource | None]:
    """The data of a run; ``labels`` is the Parquet file of its pseudo-labels."""
    human = HumanSource([open_dataset(name, config.data_root) for name in config.data.human[run.budget]])
    if not run.unlabeled:
        return human, None
    images = open_dataset(config.data.unlabeled, config.data_root)
    return human, PseudoSource(images, PseudoLabels(labels, certainty="confidence" if run.uncertainty == "confidence" else "refinement"), run.labels)


def _start(config: Config, run: RunConfig) -> Sum:
    """The foundation model, with an HQ head whose weights the run's seed draws if it trains one."""
    config = config.with_backbone(run.backbone)
    sam = load_sam(config.model.type, config.checkpoint, sha256=config.model.sha256)
    with torch.random.fork_rng(devices=[]):  # segment-anything's modules draw their first weights from the global generator
        torch.manual_seed(run.seed)
        return Sum(sam, hq=run.tuning == "hq")


def _agreement_step(
    model: Sum, other: Teacher | Sum, batch: Batch, run: RunConfig, config: FinetuneConfig, generator: torch.Generator, share: float
) -> dict[str, float]:
    """`interactive_step` with the certainty of pseudo-labels from two predictions for their box.

    The ``other`` one is an EMA teacher's, or a second decoder's (`model.decoder_copy`), which starts as the same and learns from prompts of its own.
    """
    made = batch.backup[:, 0] >= 0

    def judge(embedding: Tensor) -> Tensor:
        certainty, image, target = batch.certainty.clone(), batch.image[made], batch.target[made]
        if made.any() and isinstance(other, Teacher):
            certainty[made] = other.agreement(model, embedding, batch.pixels, image, target, config.bf16)
        elif made.any():
            certainty[made] = 1 - (box_probability(model, embedding, image, target, config.bf16) - box_probability(other, embedding, image, target, config.bf16)).abs()
        if not isinstance(other, Teacher):
            plain = replace(run, uncertainty_loss=False, uncertainty_sampling=False, task_prompt="none", contrast=0.0)
            interactive_step(other, replace(batch, pixels=embedding), plain, config, generator, share, rounds=1)
        return certainty

    return interactive_step(model, batch, run, config, generator, share, judge=judge)


def _other(model: Sum, run: RunConfig, config: FinetuneConfig, groups: list[dict]) -> Teacher | Sum | None:
    """The model that a run needs beside the one in training, if any; a second decoder is added to the optimiser's ``groups``."""
    if run.uncertainty == "two-decoders":
        twin = decoder_copy(model)
        groups.append({"params": [p for part in (twin.sam.prompt_encoder, twin.sam.mask_decoder) for p in part.parameters()], "lr": config.lr, "weight_decay": 0.0})
        return twin.requires_grad_(True)
    return Teacher(model, config.ema) if run.consistency != "none" or run.uncertainty == "discrepancy" else None


def finetune(config: Config, run: RunConfig, labels: Path | None, *, resume: Path | None = None) -> tuple[Sum, pd.DataFrame]:
    """Fine-tune the foundation model as ``run`` says; returns the model and its log.

    Task ids that the run does not train stay at zero. ``resume`` is where a killed run goes on from. Trains on the GPU where there is
    one, else with ``finetune.workers`` processes, each with its share of an iteration's images.
    """
    settings, device = replace(config.finetune, theta=config.finetune.theta if run.theta is None else run.theta), best_device()
    model = _start(config, run)
    prepare(model, run.tuning, settings, torch.Generator().manual_seed(run.seed))
    model.train().to(device)
    human, unlabeled = sources(config, run, labels)
    plan = [(source, prompts) for source, each in zip((human, unlabeled), config.prompts_per_iteration(run)) for prompts in each]
    total = sum(prompts for _, prompts in plan)
    workers = settings.workers if device.type == "cpu" else 1
    groups = parameter_groups(model, settings, run.task_prompt != "none", run.tuning)
    other = _other(model, run, settings, groups)
    optimiser = torch.optim.AdamW(groups, lr=settings.lr)
    learn = {"discrepancy": _agreement_step, "two-decoders": _agreement_step}.get(run.uncertainty, hq_step if run.tuning == "hq" else interactive_step)
    learn = partial(learn, other=other) if learn is _agreement_step else learn

    def step(generator: torch.Generator, worker: int) -> dict[str, float]:
        drawn = [(source, source.draw(model, prompts, generator)) for source, prompts in plan[worker::workers]]
        if isinstance(other, Teacher):
            other.follow(model)
        lessons = [(learn, drawn, 1.0)]
        if run.consistency != "none":
            made = [part for part in drawn if part[0] is unlabeled]
            lessons = [(learn, [part for part in drawn if part[0] is human], 1.0), (partial(consistency_step, teacher=other), made, 0.5 if run.uncertainty_loss else 1.0)]
            lessons += [(learn, made, 0.5)] if run.uncertainty_loss else []
        losses = []
        for lesson, parts, weight in lessons:
            if parts:
                batch = collate([part for _, part in parts]).to(device)
                share = weight * len(batch.target) * workers / total  # the workers' mean shall be the mean over all prompts
                losses.append(lesson(model, batch=batch, run=run, config=settings, generator=generator, share=share))
        return {key: sum(row[key] for row in losses) for key in losses[0]}

    mark = fingerprint(settings.__dict__, run.__dict__, config.with_backbone(run.backbone).checkpoint, *([labels] if run.unlabeled else []), len(human))
    schedule = Schedule(settings.iterations, settings.warmup)
    whole = model if other is None else nn.ModuleList([model, other])  # what a checkpoint must hold
    log = fit(step, whole, optimiser, schedule, seed=run.seed, clip=settings.clip, resume=resume, mark=mark,
              every=settings.checkpoint_every, title=run.name, workers=workers)  # fmt: skip
    finish(model)
    return model.eval().cpu(), log
