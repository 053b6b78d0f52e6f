"""The mask-refinement module: SAM's prompt encoder and mask decoder, trained to sharpen SAM's masks (METHOD section 3).

Its input is always a mask, that mask's box and the point that produced it; its image embedding is SAM's own,
so a refinement costs one pass of the small decoder. "Frame" is the model's input frame of S x S pixels.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sumlib.base.masks import resized
from sumlib.base.progress import with_bar
from sumlib.config.params import RefineConfig
from sumlib.data.dataset import Sample
from sumlib.losses import dice_loss, focal_loss
from sumlib.metrics import boundary_iou, mask_iou
from sumlib.model.prompts import Prompts
from sumlib.model.sum import Sum, decoder_copy
from sumlib.refiner.pairs import HumanImages, Pairs, make_pairs
from sumlib.train.loop import load_checkpoint, save_checkpoint

LOGIT_LIMIT = math.log(254.5 / 0.5)
"""Mask prompts are clamped to this magnitude: the largest logit that survives the 8-bit maps of pseudo-labels."""
FOCAL, DICE, IOU = 20.0, 1.0, 1.0  # SAM's loss (METHOD section 4)
WARMUP, CLIP = 0.05, 1.0  # share of the steps that warm up; largest gradient norm
CHECKS = 10  # times that the held-out masks are refined in a training, besides the start
HELD_OUT = 400  # masks at most


class Refiner(nn.Module):
    """A prompt encoder and mask decoder that are shown a mask; the image encoder is not part of it, unless a subclass says so."""

    def __init__(self, network: Sum, trained: Sequence[nn.Parameter]):
        """``trained`` are the parameters of ``network`` that move."""
        super().__init__()
        self.network = network.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    @classmethod
    def of(cls, model: Sum, *more) -> "Refiner":
        """One that starts as a copy of ``model``'s own prompt encoder and mask decoder; ``more`` is for the constructor of a subclass."""
        network = decoder_copy(model)
        return cls(network, network.decoder_parameters, *more)

    def embed(self, embeddings: Tensor, pixels: Callable[[], Tensor]) -> Tensor:
        """The embeddings (B, C, h, w) that `forward` looks at, given SAM's; ``pixels()`` are the images (B, 3, S, S) themselves: SAM's."""
        return embeddings

    def forward(
        self, embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """N masks to refine -> their refined low-resolution logits (N, 4h, 4w) and predicted IoU (N,).

        ``embeddings`` (N, C, h, w) of `embed`; ``logits`` (N, 4h, 4w), SAM's low-resolution logits; ``boxes``
        (N, 4) XYXY of SAM's masks and ``points`` (N, 2) x, y that produced them, in pixels of the frame.
        """
        prompts = Prompts.from_boxes(boxes, points[:, None])
        low, score = self.network.decode_codes(
            embeddings, prompts.xy, prompts.codes, mask_inputs=self.mask_prompt(logits)
        )
        return low[:, 0], score[:, 0]  # the single-mask output

    @staticmethod
    def mask_prompt(logits: Tensor) -> Tensor:
        """Logits (N, 4h, 4w) -> mask prompts (N, 1, 4h, 4w), as large as those that were stored in 8 bits."""
        return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)[:, None]

    def trained(self) -> dict[str, Tensor]:
        """The weights that make the refiner, by name."""
        names = ("network.sam.prompt_encoder.", "network.sam.mask_decoder.")
        return {
            name.removeprefix("network.sam."): value
            for name, value in self.state_dict().items()
            if name.startswith(names)
        }


@torch.no_grad()
def refine(refiner: Refiner, embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """Refined low-resolution logits (N, 4h, 4w); arguments as `Refiner.forward`."""
    return refiner(embeddings, logits, boxes, points)[0].float()


def save_refiner(path: Path, refiner: Refiner, metadata: Mapping) -> None:
    """Write the prompt encoder and mask decoder as safetensors, with JSON-ready ``metadata``; as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: value.contiguous() for name, value in refiner.trained().items()}
    save_file(
        tensors, temporary, {"refiner": json.dumps(metadata, sort_keys=True)}
    )  # one key: safetensors shuffles several
    os.replace(temporary, path)


def load_refiner(path: Path, model: Sum) -> tuple[Refiner, dict]:
    """The refiner in ``path`` for the foundation ``model``, and its metadata.

    Raises FileNotFoundError if there is no such file, ValueError if it is broken or of another architecture.
    """
    remedy = f"run `dvc repro refine@{path.stem}` again"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no refiner there; {remedy}")
    try:
        with safe_open(path, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); {remedy}") from None
    refiner = Refiner.of(model)
    shapes = lambda state: {name: tuple(value.shape) for name, value in state.items()}
    if shapes(tensors) != shapes(refiner.trained()):
        raise ValueError(f"{path}: a refiner of another architecture than the foundation model; {remedy}")
    refiner.network.sam.load_state_dict(tensors, strict=False)
    return refiner.eval(), json.loads(metadata.get("refiner", "{}"))


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
    mark: str = "",
) -> tuple[Refiner, pd.DataFrame]:
    """Train a copy of the foundation ``model``'s decoder on human masks; the state that is best on held-out masks is kept.

    ``samples`` are human-annotated; a share of ``config.holdout`` is kept out of training. Best is the
    largest sum of mean IoU and mean boundary IoU of the refined held-out masks, checked at the start and
    about every tenth of the steps. ``memory`` is how many bytes of embeddings are kept. Returns the refiner
    and its log, a row per check: step, loss (mean since the last check), sam_iou, sam_biou, iou, biou.
    ``refiner`` and ``make`` (as `make_pairs`) are for other modules than the method's. A training that was
    killed goes on from ``resume``, written at every check and removed at the end, and gives the same result;
    a checkpoint with another ``mark`` (say what `train.fingerprint` makes of the inputs) is not used. Raises
    ValueError if none of SAM's masks passes the filters.
    """
    model.eval()
    pool, order = (
        HumanImages(model, samples, memory, make),
        torch.randperm(len(samples), generator=generator).tolist(),
    )
    held = max(1, round(config.holdout * len(order))) if config.holdout else 0
    train, kept_out = order[held:], order[:held]
    if not train:
        raise ValueError(
            f"{len(samples)} human images leave none to train the refiner on; lower refine.holdout in params.yaml"
        )
    held_out = _held_out(pool, kept_out, config, generator)
    refiner = (refiner or Refiner.of(model)).train()
    parameters = [p for p in refiner.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _speed(step, config.iterations))
    every, losses, done = max(1, config.iterations // CHECKS), [], 0
    if state := load_checkpoint(resume, mark, loud=progress):
        done, log, best = state["step"], state["log"], state["best"]
        for name, part in (("refiner", refiner), ("optimiser", optimiser), ("schedule", schedule)):
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        for numbers in state["read"][len(pool.read) :]:
            pool.get(numbers)
    else:
        log = [{"step": 0, "loss": math.nan, **_score(refiner, pool, held_out)}]
        best = deepcopy(refiner.state_dict())
    for step in with_bar(
        range(done + 1, config.iterations + 1), "refiner", progress, config.iterations, done
    ):
        numbers, embeddings, pairs = _draw(pool, train, config, generator)
        loss = refinement_loss(refiner, refiner.embed(embeddings, partial(pool.pixels, numbers)), pairs)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % every == 0 or step == config.iterations:
            row = {"step": step, "loss": float(np.mean(losses)), **_score(refiner, pool, held_out)}
            losses = []
            if _merit(row) > max(map(_merit, log)) or not held_out:
                best = deepcopy(refiner.state_dict())
            log.append(row)
            if resume and step < config.iterations:
                save_checkpoint(
                    resume,
                    mark,
                    step,
                    refiner=refiner.state_dict(),
                    optimiser=optimiser.state_dict(),
                    schedule=schedule.state_dict(),
                    generator=generator.get_state(),
                    read=pool.read,
                    log=log,
                    best=best,
                )
    refiner.load_state_dict(best)
    if resume:
        resume.unlink(missing_ok=True)
    return refiner.eval(), pd.DataFrame(log)


def refinement_loss(refiner: Refiner, embeddings: Tensor, pairs: Pairs) -> Tensor:
    """SAM's loss of the refined masks against the human ones, mean over N pairs; ``pairs.image`` indexes ``embeddings`` (B, C, h, w)."""
    low, score = refiner(embeddings[pairs.image], pairs.logits, pairs.boxes, pairs.points)
    logits = resized(low[:, None].float(), pairs.target.shape[-2:])[:, 0]
    actual = mask_iou(logits.detach() > 0, pairs.target)
    return (
        FOCAL * focal_loss(logits, pairs.target)
        + DICE * dice_loss(logits, pairs.target)
        + IOU * (score.float() - actual) ** 2
    ).mean()


def _speed(step: int, iterations: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to nothing."""
    warm = min(1.0, (step + 1) / (WARMUP * iterations + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / iterations))


def _draw(
    pool: HumanImages, train: list[int], config: RefineConfig, generator: torch.Generator, tries: int = 50
) -> tuple[list[int], Tensor, Pairs]:
    """Numbers, embeddings and pairs of random images, drawn until ``images`` x ``masks_per_image`` have passed the filters, at most ``tries`` times."""
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
            f"none of SAM's masks of {len(drawn)} human images passes the refiner's filters; lower refine.pred_iou_thresh "
            "or refine.stability_thresh in params.yaml"
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
        if len(pairs) and count < HELD_OUT:
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


def _merit(row: Mapping[str, float]) -> float:
    return row["iou"] + row["biou"]
