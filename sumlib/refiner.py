"""The mask-refinement module: SAM's prompt encoder and mask decoder, trained to sharpen SAM's masks (METHOD section 3).

Its input is always a mask, that mask's box and the point that produced it; its image embedding is SAM's own, so a
refinement costs one pass of the small decoder. "Frame" is the model's input frame of S x S pixels.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.bar import with_bar
from sumlib.config import RefineConfig
from sumlib.data import Sample
from sumlib.losses import dice_loss, focal_loss
from sumlib.masks import framed, mask_box
from sumlib.metrics import boundary_iou, mask_iou
from sumlib.model import Sum, decoder_copy
from sumlib.sampler import sample_point

LOGIT_LIMIT = math.log(254.5 / 0.5)
"""Mask prompts are clamped to this magnitude: the largest logit that survives the 8-bit maps of pseudo-labels."""
FOCAL, DICE, IOU = 20.0, 1.0, 1.0  # SAM's loss (METHOD section 4)
WARMUP, CLIP = 0.05, 1.0  # share of the steps that warm up; largest gradient norm
CHECKS = 10  # times that the held-out masks are refined in a training, besides the start
HELD_OUT = 400  # masks at most


class Refiner(nn.Module):
    """A copy of a model's prompt encoder and mask decoder; the image encoder is not part of it."""

    def __init__(self, model: Sum):
        super().__init__()
        self.network = decoder_copy(model).requires_grad_(False)
        for part in (self.network.sam.prompt_encoder, self.network.sam.mask_decoder):
            part.requires_grad_(True)

    def embed(self, embeddings: Tensor, pixels: Tensor) -> Tensor:
        """The embeddings (B, C, h, w) that `forward` looks at, given SAM's and the images (B, 3, S, S) themselves: SAM's."""
        return embeddings

    def forward(self, embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """N masks to refine -> their refined low-resolution logits (N, 4h, 4w) and predicted IoU (N,).

        ``embeddings`` (N, C, h, w) of `embed`; ``logits`` (N, 4h, 4w), SAM's low-resolution logits; ``boxes`` (N, 4)
        XYXY of SAM's masks and ``points`` (N, 2) x, y that produced them, in pixels of the frame.
        """
        xy = torch.cat([points[:, None], boxes.view(-1, 2, 2)], 1)
        codes = torch.tensor([[1, 2, 3]], device=points.device).expand(len(points), -1)
        low, score = self.network.decode_codes(embeddings, xy, codes, mask_inputs=self.mask_prompt(logits))
        return low[:, 0], score[:, 0]  # the single-mask output

    @staticmethod
    def mask_prompt(logits: Tensor) -> Tensor:
        """Logits (N, 4h, 4w) -> mask prompts (N, 1, 4h, 4w), as large as those that were stored in 8 bits."""
        return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)[:, None]

    def trained(self) -> dict[str, Tensor]:
        """The weights that make the refiner, by name."""
        names = ("network.sam.prompt_encoder.", "network.sam.mask_decoder.")
        return {name.removeprefix("network.sam."): value for name, value in self.state_dict().items() if name.startswith(names)}


@torch.no_grad()
def refine(refiner: Refiner, embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """Refined low-resolution logits (N, 4h, 4w); arguments as `Refiner.forward`."""
    return refiner(embeddings, logits, boxes, points)[0].float()


def save_refiner(path: Path, refiner: Refiner, metadata: Mapping) -> None:
    """Write the prompt encoder and mask decoder as safetensors, with JSON-ready ``metadata``; as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: value.contiguous() for name, value in refiner.trained().items()}
    save_file(tensors, temporary, {"refiner": json.dumps(metadata, sort_keys=True)})  # one key: safetensors shuffles several
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
    refiner = Refiner(model)
    shapes = lambda state: {name: tuple(value.shape) for name, value in state.items()}  # noqa: E731
    if shapes(tensors) != shapes(refiner.trained()):
        raise ValueError(f"{path}: a refiner of another architecture than the foundation model; {remedy}")
    refiner.network.sam.load_state_dict(tensors, strict=False)
    return refiner.eval(), json.loads(metadata.get("refiner", "{}"))


# ---- training pairs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """N of SAM's masks, each with the human mask it should have been."""

    image: Tensor
    """(N,) index of the image."""
    logits: Tensor
    """(N, 4h, 4w) SAM's low-resolution logits."""
    boxes: Tensor
    """(N, 4) XYXY boxes of SAM's masks in the frame."""
    points: Tensor
    """(N, 2) x, y of the prompts in the frame."""
    target: Tensor
    """(N, S, S) bool, human masks."""
    masks: Tensor
    """(N, S, S) bool, SAM's masks."""

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows) -> "Pairs":
        return Pairs(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def in_frame(logits: Tensor, size: int) -> Tensor:
    """Low-resolution logits (N, K, 4h, 4w) -> (N, K, S, S), bilinear."""
    return logits if logits.shape[-1] == size else F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)


@torch.no_grad()
def make_pairs(
    model: Sum, embeddings: Tensor, image: Tensor, target: Tensor, config: RefineConfig, *, generator: torch.Generator,
    inside: Tensor | None = None,
) -> Pairs:  # fmt: skip
    """SAM's best mask for one random point of each human mask, where it is good enough to be a pseudo-label.

    ``embeddings`` (B, C, h, w), ``image`` (N,) index into them, ``target`` (N, S, S) bool, not empty, ``inside`` (N, S, S) bool the
    frame without padding. Of the three outputs the one that agrees best with the human mask is taken; the pair is kept if
    their IoU is at least ``config.min_iou`` and the mask passes the predicted-IoU and stability filters.
    """
    size, rows = target.shape[-1], torch.arange(len(target))
    points, _ = sample_point(target, generator=generator)
    xy, codes = torch.stack([points.float(), torch.zeros(len(points), 2)], 1), torch.tensor([[1, -1]]).expand(len(points), -1)
    low, score = model.decode_codes(embeddings[image], xy, codes)
    low, score = low[:, 1:].float(), score[:, 1:].float()  # the three outputs
    full = in_frame(low, size)
    if inside is not None:
        full = full.masked_fill(~inside[:, None], -math.inf)
    iou = torch.stack([mask_iou(full[:, k] > 0, target) for k in range(3)], 1)
    best = iou.argmax(1)
    stability = calculate_stability_score(full[rows, best], 0.0, config.stability_offset)
    masks = full[rows, best] > 0
    keep = (iou[rows, best] >= config.min_iou) & (score[rows, best] >= config.pred_iou_thresh)
    keep &= (stability >= config.stability_thresh) & masks.flatten(1).any(1)
    return Pairs(image, low[rows, best], mask_box(masks), points.float(), target, masks)[keep]


class HumanImages:
    """Human-annotated images by number; what fits into ``memory`` bytes is read and encoded once, the rest on every access.

    ``make`` makes the training pairs, with the arguments of `make_pairs`.
    """

    def __init__(self, model: Sum, samples: Sequence[Sample], memory: int = 2**30, make: Callable[..., Pairs] = make_pairs):
        self.model, self.samples, self.left, self.kept, self.make = model, samples, memory, {}, make

    @torch.no_grad()
    def get(self, numbers: Sequence[int]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Embeddings (B, C, h, w), each image's masks (M, S, S) bool and the frame without padding (B, S, S) bool."""
        missing = [number for number in dict.fromkeys(numbers) if number not in self.kept]
        fresh, model = {}, self.model
        if missing:
            samples = [self.samples[number] for number in missing]
            embeddings = model.encode(torch.stack([model.preprocess(sample.image) for sample in samples])).float()
            for number, sample, embedding in zip(missing, samples, embeddings):
                fresh[number] = (embedding.clone(), *self._framed(sample))
        for number, item in fresh.items():
            cost = sum(part.numel() * part.element_size() for part in item)
            if cost <= self.left:
                self.kept[number], self.left = item, self.left - cost
        items = [self.kept.get(number) or fresh[number] for number in numbers]
        return torch.stack([item[0] for item in items]), [item[1] for item in items], torch.stack([item[2] for item in items])

    def _framed(self, sample: Sample) -> tuple[Tensor, Tensor]:
        side = self.model.sam.image_encoder.img_size
        masks = framed(sample.masks, side) > 0.5
        return masks[masks.flatten(1).any(1)], framed(np.ones_like(sample.masks[:1]), side)[0] > 0.5

    def pairs(self, numbers: Sequence[int], per_image: int, config: RefineConfig, generator: torch.Generator) -> tuple[Tensor, Pairs]:
        """Embeddings and pairs of ``per_image`` random masks of each image, without repeats as far as they go."""
        embeddings, masks, inside = self.get(numbers)
        image, target = [], []
        for b, each in enumerate(masks):
            times = -(-per_image // len(each)) if len(each) else 0
            chosen = [torch.randperm(len(each), generator=generator) for _ in range(times)]
            rows = torch.cat([torch.zeros(0, dtype=torch.long), *chosen])[:per_image]
            image.append(torch.full((len(rows),), b))
            target.append(each[rows])
        image = torch.cat(image)
        return embeddings, self.make(self.model, embeddings, image, torch.cat(target), config, generator=generator, inside=inside[image])

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """The images (B, 3, S, S) as the encoder takes them."""
        return torch.stack([self.model.preprocess(self.samples[number].image) for number in numbers])


# ---- training --------------------------------------------------------------------------------------------------------


def train_refiner(
    model: Sum, samples: Sequence[Sample], config: RefineConfig, *, generator: torch.Generator, progress: bool = True, memory: int = 2**30,
    refiner: Refiner | None = None, make: Callable[..., Pairs] = make_pairs,
) -> tuple[Refiner, pd.DataFrame]:  # fmt: skip
    """Train a copy of the foundation ``model``'s decoder on human masks; the state that is best on held-out masks is kept.

    ``samples`` are human-annotated; a share of ``config.holdout`` is kept out of training. Best is the largest sum of mean IoU and
    mean boundary IoU of the refined held-out masks, checked at the start and about every tenth of the steps. ``memory`` is
    how many bytes of embeddings are kept. Returns the refiner and its log, a row per check: step, loss (mean since the last
    check), sam_iou, sam_biou, iou, biou. ``refiner`` and ``make`` (as `make_pairs`) are for other modules than the method's. Raises ValueError if none of SAM's masks passes the filters.
    """
    model.eval()
    pool, order = HumanImages(model, samples, memory, make), torch.randperm(len(samples), generator=generator).tolist()
    held = max(1, round(config.holdout * len(order))) if config.holdout else 0
    train, kept_out = order[held:], order[:held]
    if not train:
        raise ValueError(f"{len(samples)} human images leave none to train the refiner on; lower refine.holdout in params.yaml")
    held_out = _held_out(pool, kept_out, config, generator)
    refiner = (refiner or Refiner(model)).train()
    parameters = [p for p in refiner.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _speed(step, config.iterations))
    every, losses, log = max(1, config.iterations // CHECKS), [], [{"step": 0, "loss": math.nan, **_score(refiner, pool, held_out)}]
    best, state = _merit(log[0]), deepcopy(refiner.state_dict())
    for step in with_bar(range(1, config.iterations + 1), "refiner", progress):
        numbers, embeddings, pairs = _draw(pool, train, config, generator)
        loss = refinement_loss(refiner, refiner.embed(embeddings, pool.pixels(numbers)), pairs)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % every == 0 or step == config.iterations:
            log.append({"step": step, "loss": float(np.mean(losses)), **_score(refiner, pool, held_out)})
            losses = []
            if _merit(log[-1]) > best or not held_out:
                best, state = _merit(log[-1]), deepcopy(refiner.state_dict())
    refiner.load_state_dict(state)
    return refiner.eval(), pd.DataFrame(log)


def refinement_loss(refiner: Refiner, embeddings: Tensor, pairs: Pairs) -> Tensor:
    """SAM's loss of the refined masks against the human ones, mean over N pairs; ``pairs.image`` indexes ``embeddings`` (B, C, h, w)."""
    low, score = refiner(embeddings[pairs.image], pairs.logits, pairs.boxes, pairs.points)
    logits = in_frame(low[:, None].float(), pairs.target.shape[-1])[:, 0]
    actual = mask_iou(logits.detach() > 0, pairs.target)
    return (FOCAL * focal_loss(logits, pairs.target) + DICE * dice_loss(logits, pairs.target) + IOU * (score.float() - actual) ** 2).mean()


def _speed(step: int, iterations: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to nothing."""
    warm = min(1.0, (step + 1) / (WARMUP * iterations + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / iterations))


def _draw(pool: HumanImages, train: list[int], config: RefineConfig, generator: torch.Generator, tries: int = 50) -> tuple[list[int], Tensor, Pairs]:
    """Numbers, embeddings and pairs of random images, drawn until ``images`` x ``masks_per_image`` have passed the filters, at most ``tries`` times."""
    wanted, drawn, embeddings, parts, count = config.images * config.masks_per_image, [], [], [], 0
    for attempt in range(tries):
        numbers = [train[int(i)] for i in torch.randint(len(train), (config.images,), generator=generator)]
        embedding, pairs = pool.pairs(numbers, config.masks_per_image, config, generator)
        parts.append(Pairs(pairs.image + len(drawn), *(getattr(pairs, name) for name in ("logits", "boxes", "points", "target", "masks"))))
        embeddings.append(embedding)
        drawn, count = drawn + numbers, count + len(pairs)
        if count >= wanted or (count and attempt >= 3):
            break
    if not count:
        raise ValueError(
            f"none of SAM's masks of {len(drawn)} human images passes the refiner's filters; lower refine.pred_iou_thresh "
            "or refine.stability_thresh in params.yaml"
        )
    merged = Pairs(*(torch.cat([getattr(part, name) for part in parts]) for name in Pairs.__dataclass_fields__))
    return drawn, torch.cat(embeddings), merged[torch.arange(min(count, wanted))]


def _held_out(pool: HumanImages, numbers: list[int], config: RefineConfig, generator: torch.Generator) -> list[tuple[list[int], Pairs]]:
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
            embeddings = refiner.embed(embeddings, pool.pixels(numbers))
        low = refine(refiner, embeddings[pairs.image], pairs.logits, pairs.boxes, pairs.points)
        refined = (in_frame(low[:, None], pairs.target.shape[-1])[:, 0] > 0) & inside[pairs.image]
        rows.append(torch.stack([f(mask, pairs.target) for mask in (pairs.masks, refined) for f in (mask_iou, boundary_iou)], 1))
    refiner.train()
    return dict(zip(("sam_iou", "sam_biou", "iou", "biou"), torch.cat(rows).mean(0).tolist()))


def _merit(row: Mapping[str, float]) -> float:
    return row["iou"] + row["biou"]
