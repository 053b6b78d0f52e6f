"""Pre-training of the micro SAM, the foundation model that everything else starts from.

As the real SAM it learns entities and parts, hardly groups, from labels whose outlines are systematically
coarse (`sumlib.micro.world.coarse`), with points, boxes and mask prompts over several rounds, three outputs
of which the best is trained, and an IoU head. Two auxiliary heads on the encoder speed this up and are thrown
away afterwards: one matches pixel features with those of a query pixel (dense supervision), one paints the
image back (as SAM's MAE initialisation, it keeps detail in the embedding that coarse labels alone would let
go).

    python -m sumlib.micro.pretrain --out artifacts/foundation     # resumable; writes sam.safetensors and
    log.jsonl
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.base.code import code_hash
from sumlib.base.device import seeded
from sumlib.base.masks import jittered_boxes
from sumlib.config.params import PretrainConfig, load_config
from sumlib.losses import focal_loss
from sumlib.micro.gate import gate, normalise, stored_examples
from sumlib.micro.scene_store import Batches, Store, make_store
from sumlib.model.checkpoint import save_sam
from sumlib.model.micro_sam import MICRO_DEPTHS, build_sam_micro
from sumlib.model.prompts import PADDING, Prompts
from sumlib.model.rounds import Round, interactive_rounds
from sumlib.model.sum import Sum
from sumlib.sampler import next_click, sample_point
from sumlib.train import loop


class DenseHeads(nn.Module):
    """Auxiliary heads on the embedding (B, C, h, w): features to match query pixels, and the image itself."""

    def __init__(self, channels: int, features: int = 32):
        super().__init__()
        self.pixel = nn.Conv2d(channels, 2 * features * 16, 1)
        self.query = nn.ModuleList([nn.Linear(features, features) for _ in range(2)])
        self.bias = nn.Parameter(torch.full((2,), -1.0))
        self.paint = nn.Conv2d(channels, 3 * 16, 1)

    def forward(self, embedding: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Flat pixel indices ``at`` (B, Q) -> logits (2 levels, B, Q, H * W), painted image (B, 3, H, W)."""
        both = F.pixel_shuffle(self.pixel(embedding), 4).flatten(2).float().chunk(2, dim=1)  # 2 x (B, F, HW)
        logits = []
        for k, f in enumerate(both):
            q = self.query[k](torch.gather(f.transpose(1, 2), 1, at[..., None].expand(-1, -1, f.shape[1])))
            logits.append(q @ f * f.shape[1] ** -0.5 + self.bias[k])
        return torch.stack(logits), F.pixel_shuffle(self.paint(embedding), 4)


def mask_loss(logits: Tensor, target: Tensor, late: bool = False) -> Tensor:
    """4 x binary cross-entropy + dice, (..., H * W) -> (...).

    If ``late``: 2 x binary cross-entropy + SAM's 20 x focal + dice.

    Cross-entropy makes the sharp logits that SAM's stability filter needs, which focal loss alone does not at
    this scale; the focal term then moves the model to where SAM's own training, and all fine-tuning, leaves
    it.
    """
    target = target.float()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum(-1) + 1) / (p.sum(-1) + target.sum(-1) + 1)
    if not late:
        return 4 * bce + dice
    rows = lambda m: m.flatten(0, -2)[:, None]
    return 2 * bce + 20 * focal_loss(rows(logits), rows(target)).view_as(bce) + dice


def human_clicks(
    target: Tensor, exact: Tensor, prediction: Tensor, by_eye: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The next click as people make it.

    Half of them are in the middle of the largest error (`sampler.next_click`), half anywhere in the error;
    and where ``by_eye``, the error is against the object one sees, not against its label.

    A label that is a pixel too wide makes a click on its rim contradict the label, and a model that never saw
    one is thrown off by it. (The real SAM's clicks are far finer than its labels' errors, here both are a
    pixel.)

    Args: ``target``, ``exact``, ``prediction`` (N, H, W) bool, ``by_eye`` (N,) bool. Returns points (N, 2)
    long (x, y) and labels (N,) long: 1 foreground, 0 background, -1 where nothing is wrong.
    """
    truth = torch.where(by_eye[:, None, None], exact, target)
    point, found = sample_point(truth != prediction, generator=generator)
    middle, _ = next_click(truth, prediction)
    point = torch.where((torch.rand(len(truth), generator=generator) < 0.5)[:, None], middle, point)
    label = truth[torch.arange(len(truth)), point[:, 1], point[:, 0]].long()
    return point, torch.where(found, label, -1)


def dense_loss(
    model: Sum,
    heads: DenseHeads,
    embedding: Tensor,
    batch: dict,
    generator: torch.Generator,
    queries: int = 24,
) -> Tensor:
    """Supervise the encoder alone: which pixels share the part or entity of a query pixel, and the image."""
    exact, where, level = batch["exact"].flatten(1), batch["image"], batch["level"]
    b, k = len(batch["images"]), len(where) // len(batch["images"])
    region = exact.view(b, k, -1)
    per = max(1, queries // k)
    at = torch.multinomial(region.flatten(0, 1).float(), per, replacement=True, generator=generator).view(
        b, k * per
    )
    logits, painted = heads(embedding, at)
    target = (
        batch["all"]
        .flatten(2)[where, batch["mask"]]
        .view(b, k, 1, -1)
        .expand(-1, -1, per, -1)
        .reshape(b, k * per, -1)
    )
    chosen = torch.where(
        (level.view(b, k, 1).expand(-1, -1, per).reshape(b, -1) == 3)[..., None], logits[0], logits[1]
    )
    image = (batch["images"].permute(0, 3, 1, 2).float() / 255 - 0.5) * 4
    weight = (level != 1).float().view(b, k, 1).expand(-1, -1, per).reshape(b, -1)
    return (mask_loss(chosen, target) * weight).mean() + F.l1_loss(painted.float(), image)


def interactive_loss(
    model: Sum,
    embedding: Tensor,
    batch: dict,
    rounds: int,
    generator: torch.Generator,
    bf16: bool,
    jitter: float,
    late: bool = False,
    finish: bool = False,
) -> float:
    """SAM's interactive training against the coarse masks, back-propagated round by round into ``embedding``.

    ``embedding`` (B, C, h, w) is a leaf that requires a gradient. Returns the mean loss of a round.

    ``jitter`` is that of `jittered_boxes`. ``late`` has SAM's focal term (`mask_loss`), ``finish`` the
    `human_clicks`.
    """
    where, target = batch["image"], batch["all"][batch["image"], batch["mask"]]  # (N, H, W)
    n, flat = len(target), target.flatten(1)
    candidates = batch["all"].flatten(2)[where].float()  # (N, M, HW) every mask of the prompt's image
    boxed = (torch.rand(n, generator=generator) < 0.25) | (batch["level"] == 1)
    background = (torch.rand(n, generator=generator) < 0.06) & ~boxed
    empty = ~batch["all"].any(1)[where]
    background &= empty.flatten(1).any(1)
    region = torch.where(background[:, None, None], empty, target & batch["exact"])
    region = torch.where(region.flatten(1).any(1)[:, None, None], region, target)
    points, _ = sample_point(region, generator=generator)
    corners = Prompts.from_boxes(jittered_boxes(target, generator, jitter))
    first = Prompts.where(boxed, corners, Prompts.from_points(points[:, None]))
    by_eye = torch.rand(n, generator=generator) < 0.5 if finish else torch.zeros(n, dtype=torch.bool)
    keep, rows, total = (~background).float(), torch.arange(n), 0.0

    def decode(prompts: Prompts, shown: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, score = model.decode_codes(embedding[where], prompts.xy, prompts.codes, mask_inputs=shown)
        return logits.float(), score.float()

    def next_prompts(turn: Round) -> Prompts:
        if finish:
            return turn.prompts.add(*human_clicks(target, batch["exact"], turn.mask, by_eye, generator))
        point, wrong = sample_point(turn.mask != target, generator=generator)
        label = target[rows, point[:, 1], point[:, 0]].long()
        return turn.prompts.add(point, torch.where(wrong, label, PADDING))

    for turn in interactive_rounds(decode, first, rounds, next_prompts):
        logits, score = turn.all_logits.flatten(2), turn.all_scores
        losses = mask_loss(logits, flat[:, None].expand_as(logits), late)  # (N, 4)
        # A click on the background asks for no mask, however well one is painted.
        overlap = _best_overlap(logits.detach() > 0, candidates) * keep[:, None]
        if turn.number == 0:
            smallest, best = losses[:, 1:].min(1)
            loss = (keep * (smallest + 0.25 * losses[:, 0])).mean() + F.mse_loss(score, overlap)
        else:
            best = torch.zeros(n, dtype=torch.long)
            loss = (keep * losses[:, 0]).mean() + F.mse_loss(score[:, 0], overlap[:, 0])
        loss.backward()
        total += loss.item() / rounds
        turn.take(best, turn.logits.detach()[rows, best] > 0)
    return total


def _best_overlap(masks: Tensor, candidates: Tensor) -> Tensor:
    """IoU (N, K) of masks (N, K, HW) bool with the best of ``candidates`` (N, M, HW), 0 or 1."""
    on = masks.float()
    overlap = on @ candidates.transpose(1, 2)
    union = on.sum(-1)[..., None] + candidates.sum(-1)[:, None] - overlap
    return (overlap / union.clamp(min=1)).amax(-1)


class Pretraining(loop.Check):
    """One pre-training: what is trained, a step of it, and what is measured in between."""

    module = "sumlib.micro.pretrain"
    """Where the class is, also when that module is run as a program."""

    def __init__(self, config: PretrainConfig, bf16: bool = True):
        with seeded(config.seed):  # segment-anything's modules draw their start from the global generator
            self.model = Sum(build_sam_micro(depth=MICRO_DEPTHS[config.type]))
            self.heads = DenseHeads(self.model.sam.prompt_encoder.embed_dim)
        self.config, self.bf16, self.number = config, bf16, 0
        self.held_out: Store | None = None
        self.log: Path | None = None
        self.started = time.time()

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.sam.parameters(), *self.heads.parameters()]

    def fit(
        self, store: Store, *, every: int = 250, checkpoint: loop.Checkpoint = loop.NO_CHECKPOINT
    ) -> pd.DataFrame:
        """Train on the scenes of ``store``, a worker a share of the images; returns the log, a row a step."""
        config = self.config
        # A group for each parameter: the norm of the gradient is added up in the model's order then. The
        # schedule gives the rate itself.
        groups = [
            {"params": [p], "weight_decay": config.weight_decay if p.dim() > 1 else 0.0}
            for p in self.parameters()
        ]
        return loop.fit(
            partial(self.step, store),
            nn.ModuleList([self.model, self.heads]),
            torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98)),
            loop.Plan(
                Rates(config),
                seed=config.seed,
                clip=1.0,
                shares=config.workers,
                every=every,
                title=config.type,
            ),
            checkpoint=checkpoint,
            before=self.begin,
            check=self,
        )

    def begin(self, number: int) -> None:
        self.number = number

    def side_loss(self, embedding: Tensor, batch: dict, generator: torch.Generator) -> Tensor:
        """What the encoder is taught beside the masks, alone at first."""
        return dense_loss(self.model, self.heads, embedding, batch, generator)

    def step(self, store: Store, generator: torch.Generator, share: int) -> dict[str, float]:
        """One share of iteration `number`; its randomness depends on the generator alone."""
        c, number = self.config, self.number
        dense = number < int(c.dense_only * c.iterations)
        batches = Batches(store, generator.initial_seed())
        batch = batches.draw(c.images // c.workers * (2 if dense else 1), c.prompts)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            embedding = self.model.encode(normalise(self.model, batch["images"])).float()
        leaf = embedding.detach().requires_grad_()
        loss = self.side_loss(leaf, batch, generator)
        (loss if dense else 0.5 * loss).backward()
        value = loss.item()
        if not dense:
            late, finish = number >= c.late * c.iterations, number >= c.iterations
            turns = c.finish_rounds if finish else c.late_rounds if late else c.rounds
            value = interactive_loss(
                self.model,
                leaf,
                batch,
                turns[number % len(turns)],
                generator,
                self.bf16,
                c.box_jitter,
                late,
                finish,
            )
        embedding.backward(leaf.grad)
        for (
            p
        ) in self.parameters():  # without a gradient it decays all the same, whatever the number of workers
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return {"loss": value}

    def __call__(self, step: int, rows: list[dict]) -> None:
        """A line of the log: the mean loss since the last one, and the gate."""
        if self.log is None or step == 0:
            return
        row = {
            "step": step,
            "seconds": round(time.time() - self.started),
            "loss": round(float(np.mean([row["loss"] for row in rows])), 4),
        }
        scores = gate(self.model, stored_examples(self.held_out, len(self.held_out.images)))
        row |= {name: [round(x, 1) for x in values] for name, values in scores.items()}
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")


class Rates(loop.Schedule):
    """The learning rates themselves of a `PretrainConfig`, for an optimiser whose own rate is 1."""

    def __init__(self, config: PretrainConfig):
        super().__init__(config.steps)
        self.__dict__["rate"] = config.lr_at  # frozen

    def __call__(self, step: int) -> float:
        return self.rate(step)


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    bf16: bool = True,
    every: int = 250,
    held_out: int = 60,
    kind: Callable[..., Pretraining] = Pretraining,
) -> Sum:
    """Train, or resume, in ``config.workers`` processes.

    Keeps the last state and a log of the gate, on ``held_out`` scenes, in ``out``. ``kind(config, bf16)``
    makes the state. A state of another configuration or code is not used, and a message says so.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = make_store(config.scenes, seed=config.seed + 1)
    training = kind(config, bf16)
    training.held_out, training.log = make_store(held_out, seed=config.seed + 999), out / "log.jsonl"
    code = code_hash(training.module), torch.__version__
    mark = loop.fingerprint(asdict(config), bf16, held_out, code, _weights(training.model))
    training.fit(store, every=every, checkpoint=loop.Checkpoint(out / "last.pt", mark, keep=True))
    return training.model


def _weights(model: nn.Module) -> str:
    """Hash of the weights that a training starts from: a smaller model's are its teacher's."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().numpy())
    return digest.hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, help="default: pretrain.micro.iterations of params.yaml")
    arguments = parser.parse_args()
    settings = load_config().pretrain["micro"]
    if arguments.iterations is not None:
        settings = replace(settings, iterations=arguments.iterations)
    trained = pretrain(settings, arguments.out)
    save_sam(
        arguments.out / "sam.safetensors",
        trained.sam,
        {"model_type": "micro", "made_by": "python -m sumlib.micro.pretrain", "config": asdict(settings)},
    )
