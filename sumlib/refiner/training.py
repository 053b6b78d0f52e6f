"""Training of the mask-refinement module on human masks (docs/method.md section 3)."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sumlib.base.code import code_hash
from sumlib.base.masks import resized
from sumlib.config.params import RefineConfig
from sumlib.data.content import content_hash
from sumlib.data.dataset import Sample
from sumlib.losses import dice_loss, focal_loss
from sumlib.metrics import boundary_iou, mask_iou
from sumlib.model.sum import Sum
from sumlib.refiner.module import Refiner, refine
from sumlib.refiner.pairs import HumanImages, Pairs, make_pairs
from sumlib.train import loop


def train_refiner(
    model: Sum,
    samples: Sequence[Sample],
    config: RefineConfig,
    *,
    generator: torch.Generator,
    progress: bool = True,
    memory: int = 2**30,
    refiner: Refiner | None = None,
    make: Callable[..., Pairs] = make_pairs,
    resume: Path | None = None,
    fingerprint: str = "",
) -> tuple[Refiner, pd.DataFrame]:
    """Train a copy of the foundation ``model``'s decoder on human masks; the best state is kept.

    ``samples`` are human-annotated; a share of ``config.holdout`` is kept out of training. Best is the
    largest sum of mean IoU and mean boundary IoU of the refined held-out masks, checked at the start and
    about every tenth of the steps. ``memory`` is how many bytes of embeddings are kept. Returns the refiner
    and its log, a row per check: step, loss (mean since the last check), sam_iou, sam_biou, iou, biou.
    ``refiner`` and ``make`` (as `make_pairs`) are for other modules than the method's.

    A training that was killed goes on from ``resume``, written at every check and removed at the end, and
    gives the same result. It starts anew, with a message, if anything is another than before: ``fingerprint``
    (say what `train.fingerprint` makes of configuration and model), the code, or the names, pixels or masks
    of ``samples``.

    Raises ValueError if none of SAM's masks passes the filters.
    """
    model.eval()
    pool = HumanImages(model, samples, memory, make)
    order = torch.randperm(len(samples), generator=generator).tolist()
    held = max(1, round(config.holdout * len(order))) if config.holdout else 0
    train, kept_out = order[held:], order[:held]
    if not train:
        raise ValueError(
            f"{len(samples)} human images leave none to train the refiner on; "
            "lower refine.holdout in params.yaml"
        )
    held_out = _held_out(pool, kept_out, config, generator)
    refiner = (refiner or Refiner.of(model)).train()

    def step(_: torch.Generator, share: int) -> dict[str, float]:
        numbers, embeddings, pairs = _draw(pool, train, config, generator)
        embedded = refiner.embed(embeddings, partial(pool.pixels, numbers))
        loss = refinement_loss(refiner, embedded, pairs, config)
        loss.backward()
        return {"loss": loss.item()}

    check = HeldOutCheck(refiner, pool, held_out, generator)
    loop.fit(
        step,
        refiner,
        torch.optim.AdamW([p for p in refiner.parameters() if p.requires_grad], lr=config.lr),
        loop.Plan(
            loop.Schedule(config.iterations, warmup=config.warmup * config.iterations),
            clip=config.clip,
            every=max(1, config.iterations // config.checks),
            title="refiner",
            progress=progress,
        ),
        checkpoint=_checkpoint(resume, fingerprint, samples, (type(model), type(refiner), make)),
        check=check,
    )
    refiner.load_state_dict(check.best)
    return refiner.eval(), pd.DataFrame(check.log)


def _checkpoint(
    path: Path | None, fingerprint: str, samples: Sequence[Sample], parts: Sequence[Callable]
) -> loop.Checkpoint:
    """Where to resume from; code, that of ``parts`` too, torch and data are added to the fingerprint."""
    if path is None:
        return loop.Checkpoint()
    modules = {__name__, *(part.__module__ for part in parts)}
    code = code_hash(*sorted(name for name in modules if name.startswith("sumlib.")))
    return loop.Checkpoint(
        path, loop.fingerprint(fingerprint, code, torch.__version__, content_hash(samples))
    )


class HeldOutCheck(loop.Check):
    """Refines the held-out masks and keeps the best state.

    It also saves what decides the rest of a training: the state of the ``generator``, and which images were
    encoded together.
    """

    def __init__(
        self,
        refiner: Refiner,
        pool: HumanImages,
        held_out: list[tuple[list[int], Pairs]],
        generator: torch.Generator,
    ):
        self.refiner, self.pool, self.held_out, self.generator = refiner, pool, held_out, generator
        self.log: list[dict] = []
        self.best: dict[str, Tensor] = {}

    def __call__(self, step: int, rows: list[dict]) -> None:
        loss = float(np.mean([row["loss"] for row in rows])) if rows else math.nan
        row = {"step": step, "loss": loss, **_score(self.refiner, self.pool, self.held_out)}
        if not self.log or not self.held_out or _merit(row) > max(map(_merit, self.log)):
            self.best = deepcopy(self.refiner.state_dict())
        self.log.append(row)

    def state_dict(self) -> dict:
        return {
            "log": self.log,
            "best": self.best,
            "generator": self.generator.get_state(),
            "read": self.pool.read,
        }

    def load_state_dict(self, state: dict) -> None:
        self.log, self.best = state["log"], state["best"]
        self.generator.set_state(state["generator"])
        for numbers in state["read"][len(self.pool.read) :]:
            self.pool.get(numbers)


def _merit(row: Mapping[str, float]) -> float:
    return row["iou"] + row["biou"]


def refinement_loss(refiner: Refiner, embeddings: Tensor, pairs: Pairs, config: RefineConfig) -> Tensor:
    """SAM's loss of the refined masks against the human ones, mean over N pairs.

    ``pairs.image`` indexes ``embeddings`` (B, C, h, w).
    """
    low, score = refiner(embeddings[pairs.image], pairs.logits, pairs.boxes, pairs.points)
    logits = resized(low[:, None].float(), pairs.target.shape[-2:])[:, 0]
    actual = mask_iou(logits.detach() > 0, pairs.target)
    return (
        config.focal_weight * focal_loss(logits, pairs.target)
        + config.dice_weight * dice_loss(logits, pairs.target)
        + config.iou_weight * (score.float() - actual) ** 2
    ).mean()


def _draw(
    pool: HumanImages, train: list[int], config: RefineConfig, generator: torch.Generator, tries: int = 50
) -> tuple[list[int], Tensor, Pairs]:
    """Numbers, embeddings and pairs of random images.

    Drawn until ``images`` x ``masks_per_image`` pairs have passed the filters, at most ``tries`` times.
    """
    wanted, drawn, embeddings, parts, count = config.images * config.masks_per_image, [], [], [], 0
    for attempt in range(tries):
        numbers = [train[int(i)] for i in torch.randint(len(train), (config.images,), generator=generator)]
        embedding, pairs = pool.pairs(numbers, config.masks_per_image, config, generator)
        parts.append(
            Pairs(
                pairs.image + len(drawn),
                *(getattr(pairs, name) for name in ("logits", "boxes", "points", "target", "masks")),
            )
        )
        embeddings.append(embedding)
        drawn, count = drawn + numbers, count + len(pairs)
        if count >= wanted or (count and attempt >= 3):
            break
    if not count:
        raise ValueError(
            f"none of SAM's masks of {len(drawn)} human images passes the refiner's filters; "
            "lower refine.pred_iou_thresh or refine.stability_thresh in params.yaml"
        )
    merged = Pairs(
        *(torch.cat([getattr(part, name) for part in parts]) for name in Pairs.__dataclass_fields__)
    )
    return drawn, torch.cat(embeddings), merged[torch.arange(min(count, wanted))]


def _held_out(
    pool: HumanImages, numbers: list[int], config: RefineConfig, generator: torch.Generator
) -> list[tuple[list[int], Pairs]]:
    """Fixed pairs of the held-out images, in chunks of images."""
    chunks, count = [], 0
    for start in range(0, len(numbers), config.images):
        chunk = numbers[start : start + config.images]
        pairs = pool.pairs(chunk, config.masks_per_image, config, generator)[1]
        if len(pairs) and count < config.held_out:
            chunks.append((chunk, pairs))
            count += len(pairs)
    return chunks


def _score(refiner: Refiner, pool: HumanImages, held_out: list[tuple[list[int], Pairs]]) -> dict[str, float]:
    """Mean IoU and boundary IoU of SAM's and of the refined held-out masks; NaN where none is held out."""
    rows = [torch.zeros(0, 4)]
    refiner.eval()
    for numbers, pairs in held_out:
        embeddings, _, inside = pool.get(numbers)
        with torch.no_grad():
            embeddings = refiner.embed(embeddings, partial(pool.pixels, numbers))
        low = refine(refiner, embeddings[pairs.image], pairs.logits, pairs.boxes, pairs.points)
        refined = (resized(low[:, None], pairs.target.shape[-2:])[:, 0] > 0) & inside[pairs.image]
        rows.append(
            torch.stack(
                [f(mask, pairs.target) for mask in (pairs.masks, refined) for f in (mask_iou, boundary_iou)],
                1,
            )
        )
    refiner.train()
    return dict(zip(("sam_iou", "sam_biou", "iou", "biou"), torch.cat(rows).mean(0).tolist()))
