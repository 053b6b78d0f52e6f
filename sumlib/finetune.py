"""Interactive fine-tuning on human masks and pseudo-labels, heeding the uncertainty map (METHOD sections 4 and 5).

The same loop trains every model of the comparison; a `RunConfig` says which losses, labels, prompts and task prompts it
uses. All of them see the same number of prompts an iteration.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from sumlib.base.device import best_device, seeded
from sumlib.config.params import Config, FinetuneConfig
from sumlib.config.runs import RunConfig
from sumlib.methods.teacher import SecondDecoder, Teacher
from sumlib.model.foundation import load_foundation
from sumlib.model.sum import Sum
from sumlib.train.batches import HumanSource, PseudoSource, collate, open_sources
from sumlib.train.interactive import agreement_step, consistency_step, hq_step, interactive_step
from sumlib.train.loop import Schedule, fingerprint, fit
from sumlib.train.tuning import finish, parameter_groups, prepare


def _other(
    model: Sum, run: RunConfig, config: FinetuneConfig, groups: list[dict]
) -> Teacher | SecondDecoder | None:
    """The model that a run needs beside the one in training, if any; a second decoder is added to the optimiser's ``groups``."""
    if run.uncertainty == "two-decoders":
        second = SecondDecoder(model)
        groups.append({"params": second.model.decoder_parameters, "lr": config.lr, "weight_decay": 0.0})
        return second
    return (
        Teacher(model, config.ema) if run.consistency != "none" or run.uncertainty == "discrepancy" else None
    )


def _lessons(
    run: RunConfig, other: Teacher | SecondDecoder | None
) -> list[tuple[Callable, float, bool, bool]]:
    """What a run learns from an iteration's images: (step, weight of its loss, takes human ones, takes unlabeled ones)."""
    learn = hq_step if run.tuning == "hq" else interactive_step
    if run.uncertainty in ("discrepancy", "two-decoders"):
        learn = partial(agreement_step, other=other)
    if run.consistency == "none":
        return [(learn, 1.0, True, True)]
    follow = partial(consistency_step, teacher=other)
    if run.uncertainty_loss:
        return [(learn, 1.0, True, False), (follow, 0.5, False, True), (learn, 0.5, False, True)]
    return [(learn, 1.0, True, False), (follow, 1.0, False, True)]


def finetune(
    config: Config,
    run: RunConfig,
    labels: Path | None,
    *,
    data: tuple[HumanSource, PseudoSource | None] | None = None,
    resume: Path | None = None,
) -> tuple[Sum, pd.DataFrame]:
    """Fine-tune the foundation model as ``run`` says; returns the model and its log.

    ``labels`` is the Parquet file of its pseudo-labels; ``data`` what `open_sources` gave for it, if it was called before. Task ids that the run does not
    train stay at zero. ``resume`` is where a killed run goes on from. Trains on the GPU where there is one, else in ``finetune.shares``,
    each with its part of an iteration's images and, where there are cores enough, a process of its own.
    """
    settings, device = (
        replace(config.finetune, theta=config.finetune.theta if run.theta is None else run.theta),
        best_device(),
    )
    sam = load_foundation(config, run.backbone).sam
    with seeded(run.seed):
        model = Sum(sam, hq=run.tuning == "hq")
    prepare(model, run.tuning, settings, torch.Generator().manual_seed(run.seed))
    model.train().to(device)
    human, unlabeled = data or open_sources(config, run, labels)
    plan = [
        (source, prompts)
        for source, each in zip((human, unlabeled), config.prompts_per_iteration(run))
        for prompts in each
    ]
    total = sum(prompts for _, prompts in plan)
    shares = settings.shares if device.type == "cpu" else 1
    groups = parameter_groups(model, settings, run.task_prompt != "none", run.tuning)
    other = _other(model, run, settings, groups)
    optimiser = torch.optim.AdamW(groups, lr=settings.lr)
    lessons = _lessons(run, other)

    def step(generator: torch.Generator, number: int) -> dict[str, float]:
        drawn = [(source, source.draw(model, prompts, generator)) for source, prompts in plan[number::shares]]
        losses = []
        for learn, weight, human_too, unlabeled_too in lessons:
            parts = [part for source, part in drawn if (human_too if source is human else unlabeled_too)]
            if parts:
                batch = collate(parts).to(device)
                share = (
                    weight * len(batch.target) * shares / total
                )  # the shares' mean shall be the mean over all prompts
                losses.append(
                    learn(model, batch=batch, run=run, config=settings, generator=generator, share=share)
                )
        return {key: sum(row[key] for row in losses) for key in losses[0]}

    mark = fingerprint(
        settings.__dict__,
        run.__dict__,
        config.with_backbone(run.backbone).checkpoint,
        *([labels] if run.unlabeled else []),
        len(human),
    )
    schedule = Schedule(settings.iterations, settings.warmup)
    whole = model if other is None else nn.ModuleList([model, other])  # what a checkpoint must hold
    log = fit(
        step,
        whole,
        optimiser,
        schedule,
        seed=run.seed,
        clip=settings.clip,
        resume=resume,
        mark=mark,
        every=settings.checkpoint_every,
        title=run.name,
        shares=shares,
        before=partial(other.follow, model) if isinstance(other, Teacher) else None,
    )
    finish(model)
    return model.eval().cpu(), log
