"""Interactive fine-tuning on human masks and pseudo-labels, by certainty (docs/method.md sections 4 and 5).

The same loop trains every model of the comparison; a `RunConfig` says by which method, and which losses,
labels, prompts and task prompts it uses. All of them see the same number of prompts in an iteration.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from sumlib.base.code import code_hash
from sumlib.base.device import best_device, seeded
from sumlib.config.params import Config
from sumlib.config.runs import RunConfig
from sumlib.data.content import content_hash
from sumlib.methods.registry import load_method
from sumlib.model.foundation import load_foundation
from sumlib.model.sum import Sum
from sumlib.train.batches import HumanSource, PseudoSource, collate, open_sources
from sumlib.train.loop import Checkpoint, Plan, Schedule, Step, fingerprint, fit
from sumlib.train.method import Lesson, Method


def finetune(
    config: Config,
    run: RunConfig,
    labels: Path | None,
    *,
    data: tuple[HumanSource, PseudoSource | None] | None = None,
    resume: Path | None = None,
) -> tuple[Sum, pd.DataFrame]:
    """Fine-tune the foundation model as ``run`` says; returns the model and its log.

    ``labels`` is the Parquet file of its pseudo-labels; ``data`` what `open_sources` gave for it, if it was
    called before. Task ids that the run does not train stay at zero. ``resume`` is where a killed run goes on
    from. Trains on the GPU where there is one, else in ``finetune.shares``, each with its part of an
    iteration's images and, where there are cores enough, a process of its own.
    """
    own, device = config.finetune, best_device()
    if run.theta is not None:
        own = replace(own, theta=run.theta)
    method = load_method(run.method)(run, own)
    sam = load_foundation(config, run.backbone).sam
    with seeded(run.seed):
        model = method.build(sam)
    method.prepare(model, torch.Generator().manual_seed(run.seed))
    model.train().to(device)
    sources = data or open_sources(config, run, labels)
    method.accompany(model)
    optimiser = torch.optim.AdamW(method.parameter_groups(model))
    shares = own.shares if device.type == "cpu" else 1
    plan = [
        (source, prompts)
        for source, counts in zip(sources, config.prompts_per_iteration(run))
        for prompts in counts
    ]
    saved = model if method.companion is None else nn.ModuleList([model, method.companion])
    log = fit(
        _step(model, method.lessons(), sources[0], plan, shares),
        saved,
        optimiser,
        Plan(
            Schedule(own.iterations, own.warmup),
            seed=run.seed,
            clip=own.clip,
            shares=shares,
            every=own.checkpoint_every,
            title=run.name,
        ),
        checkpoint=Checkpoint(resume, _fingerprint(config, run, method, sources, labels) if resume else ""),
        before=lambda _: method.before_step(model),
    )
    method.finish(model)
    return model.eval().cpu(), log


def _fingerprint(
    config: Config,
    run: RunConfig,
    method: Method,
    sources: tuple[HumanSource, PseudoSource | None],
    labels: Path | None,
) -> str:
    """Hash of all that decides a training: numbers, checkpoint, code, torch, images, masks, pseudo-labels."""
    human, unlabeled = sources
    data = [content_hash(dataset) for dataset in human.datasets]
    if unlabeled is not None:
        data.append(content_hash(unlabeled.images))
    return fingerprint(
        method.config.__dict__,
        run.__dict__,
        config.prompts_per_iteration(run),
        config.with_backbone(run.backbone).checkpoint,
        *([labels] if run.unlabeled else []),
        data,
        code_hash(__name__, type(method).__module__),
        torch.__version__,
    )


def _step(
    model: Sum,
    lessons: list[Lesson],
    human: HumanSource,
    plan: list[tuple[HumanSource | PseudoSource, int]],
    shares: int,
) -> Step:
    """The step that `fit` repeats: draw a share of the ``plan`` (source, prompts) and learn."""
    total, device = sum(prompts for _, prompts in plan), model.sam.device

    def step(generator: torch.Generator, number: int) -> dict[str, float]:
        drawn = [(source, source.draw(model, prompts, generator)) for source, prompts in plan[number::shares]]
        losses = []
        for lesson in lessons:
            parts = [
                part for source, part in drawn if (lesson.human if source is human else lesson.unlabeled)
            ]
            if parts:
                batch = collate(parts).to(device)
                # the shares' mean shall be the mean over all prompts
                share = lesson.weight * len(batch.target) * shares / total
                losses.append(lesson.learn(model, batch, generator, share))
        return {key: sum(row[key] for row in losses) for key in losses[0]}

    return step
