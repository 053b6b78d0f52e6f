"""Other ways to build the mask-refinement module, which the paper compares with its own (Figures 7 and 8)."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.base.code import code_hash
from sumlib.base.device import seeded
from sumlib.base.files import remove_files
from sumlib.base.masks import mask_box, resized
from sumlib.base.parallel import each
from sumlib.base.progress import with_bar
from sumlib.config.params import RefineConfig, VariantsConfig
from sumlib.data.content import content_hash
from sumlib.data.dataset import Sample
from sumlib.methods.hq_sam import HqSum, hq_parameters, noised_mask
from sumlib.model.adapters import add_adapters
from sumlib.model.checkpoint import build_like
from sumlib.model.prompts import Prompts
from sumlib.model.sum import Sum
from sumlib.refiner.measure import measure_refinement
from sumlib.refiner.module import Refiner
from sumlib.refiner.pairs import Pairs, make_pairs
from sumlib.refiner.training import train_refiner
from sumlib.sampler import sample_point
from sumlib.train import loop


class HqRefiner(Refiner):
    """HQ-SAM's head on a frozen SAM; with ``mask_only`` it sees neither box nor point."""

    def __init__(self, model: HqSum, mask_only: bool):
        super().__init__(model, hq_parameters(model.hq, task_prompt=False))
        self.mask_only = mask_only

    def embed(self, embeddings: Tensor, pixels: Callable[[], Tensor]) -> Tensor:
        return self.network.encode(pixels())

    def forward(
        self, embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.mask_only:
            return super().forward(embeddings, logits, boxes, points)
        nothing = Prompts.nothing(len(points), points.device)
        low, score = self.network.decode_codes(
            embeddings, nothing.xy, nothing.codes, mask_inputs=self.mask_prompt(logits)
        )
        return low[:, 0], score[:, 0]


class EncoderRefiner(Refiner):
    """The module with an image encoder of its own: (B, 3, S, S) -> (B, C, h, w)."""

    def __init__(self, network: Sum, trained: Sequence[nn.Parameter], encoder: ImageEncoderViT):
        """``encoder`` learns where its parameters require a gradient."""
        super().__init__(network, trained)
        self.encoder = encoder

    def embed(self, embeddings: Tensor, pixels: Callable[[], Tensor]) -> Tensor:
        return self.encoder(pixels())


def synthetic_pairs(
    model: Sum,
    embeddings: Tensor,
    image: Tensor,
    target: Tensor,
    config: RefineConfig,
    *,
    generator: torch.Generator,
    inside: Tensor | None = None,
) -> Pairs:
    """`make_pairs` with the human mask distorted (`noised_mask`) instead of SAM's; empty ones are dropped."""
    low = noised_mask(target, model.sam.prompt_encoder.mask_input_size[0], config.mask_noise, generator)
    full = resized(low, target.shape[-2:])
    masks = full[:, 0] > 0 if inside is None else (full[:, 0] > 0) & inside
    points, _ = sample_point(target, generator=generator)
    keep = masks.flatten(1).any(1)
    return Pairs(image, low[:, 0], mask_box(masks), points.float(), target, masks)[keep]


def masked_autoencoder(
    model: Sum,
    images: Sequence[Sample],
    config: VariantsConfig,
    *,
    generator: torch.Generator,
    progress: bool = True,
) -> ImageEncoderViT:
    """A new image encoder trained as a masked autoencoder on ``images``.

    It reconstructs images with a fraction ``config.mae_hidden`` of the blocks blanked. Masked patches are
    blank pixels, as in SimMIM, since the encoder has convolutions and windows; blocks are two patches wide.
    """
    with seeded(int(torch.randint(2**31, (), generator=generator))):
        encoder = build_like(model.sam).image_encoder
        grid = model.sam.prompt_encoder.image_embedding_size[0]
        patch = encoder.img_size // grid
        head = nn.Conv2d(model.sam.prompt_encoder.embed_dim, 3 * patch**2, 1)
    pixels = torch.stack([model.preprocess(sample.image) for sample in images])

    batch = config.mae_images

    def step(_: torch.Generator, share: int) -> dict[str, float]:
        real = pixels[torch.randint(len(pixels), (batch,), generator=generator).to(pixels.device)]
        blank = (torch.rand(batch, 1, grid // 2, grid // 2, generator=generator) < config.mae_hidden).float()
        blank = F.interpolate(blank, scale_factor=2 * patch, mode="nearest").to(pixels.device)
        painted = F.pixel_shuffle(head(encoder(real * (1 - blank))), patch).float()
        loss = ((painted - real).abs() * blank).sum() / (3 * blank.sum()).clamp(min=1)
        loss.backward()
        return {"loss": loss.item()}

    both = nn.ModuleList([encoder, head]).to(pixels.device)
    optimiser = torch.optim.AdamW(both.parameters(), lr=config.mae_lr, weight_decay=config.mae_weight_decay)
    plan = loop.Plan(
        UpAndDown(config.mae_iterations, warmup=config.mae_warmup),
        clip=config.mae_clip,
        title="masked autoencoder",
        progress=progress,
    )
    loop.fit(step, both, optimiser, plan)
    return encoder


class UpAndDown(loop.Schedule):
    """Linear warm-up over the share ``warmup`` of the steps; from the middle on straight down to nothing."""

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.warmup * self.iterations + 1), 2 * (1 - step / self.iterations))


@dataclass(frozen=True)
class Variant:
    """A way to build and train the module."""

    title: str
    figure: int | None = None
    """Of the paper; None: in all of them."""
    build: Callable[[Sum, torch.Generator, Sequence[Sample]], Refiner] | None = None
    """From the foundation model, a generator and unlabeled images; None: the method's `Refiner`."""
    make: Callable[..., Pairs] = make_pairs
    changed: Mapping = field(default_factory=dict)
    """Settings of `RefineConfig` other than the method's."""


def _hq(model: Sum, generator: torch.Generator, images: Sequence[Sample]) -> Refiner:
    with seeded(int(torch.randint(2**31, (), generator=generator))):
        return HqRefiner(HqSum(deepcopy(model.sam)), mask_only=True)


def _adapted(
    model: Sum, generator: torch.Generator, images: Sequence[Sample], config: VariantsConfig
) -> Refiner:
    encoder = deepcopy(model.sam.image_encoder).requires_grad_(False)
    add_adapters(encoder, config.adapter_width, generator)
    return EncoderRefiner.of(model, encoder)


def _mae(model: Sum, generator: torch.Generator, images: Sequence[Sample], config: VariantsConfig) -> Refiner:
    return EncoderRefiner.of(
        model, masked_autoencoder(model, images, config, generator=generator, progress=False)
    )


METHOD = "mask-refinement module"
"""Title of the method's own module."""


def variants(config: RefineConfig, settings: VariantsConfig) -> dict[str, Variant]:
    """All variants that are trained for the comparison, the slowest first, and the method's own module.

    Where the image encoder runs in training, a step has as many masks as the method's but from half of the
    images.
    """
    nothing = {"min_iou": 0.0, "pred_iou_thresh": 0.0, "stability_thresh": 0.0}
    fewer = {"images": max(1, config.images // 2), "masks_per_image": 2 * config.masks_per_image}
    return {
        "mae": Variant("MAE encoder", 8, partial(_mae, config=settings), changed=fewer),
        "adapter": Variant("encoder adapter", 8, partial(_adapted, config=settings), changed=fewer),
        "hq-mp": Variant("HQ-SAM MP", 7, _hq, synthetic_pairs),
        "hq-mp-sam": Variant("HQ-SAM MP, SAM's masks", 7, _hq),
        "no-filter": Variant("without filtering", 8, changed=nothing),
        "synthetic": Variant("synthetic masks", 8, make=synthetic_pairs),
        "module": Variant(METHOD),
    }


def compare_variants(
    model: Sum,
    ready: Mapping[str, Refiner],
    human: Sequence[Sample],
    unlabeled: Sequence[Sample],
    sets: Mapping[str, Sequence[Sample]],
    config: RefineConfig,
    chosen: Mapping[str, Variant],
    *,
    workers: int = 1,
    progress: bool = True,
    resume: Path | None = None,
    fingerprint: str = "",
) -> tuple[dict[str, dict], dict[str, pd.DataFrame]]:
    """Train each variant as ``config`` says and measure it on ``sets`` {name: images}.

    The refiners that are ``ready`` {title: refiner} are measured too. Trained in bfloat16. Returns by title
    the "levels" of `measure_refinement` from one point, and the logs of those that were trained. The variants
    are shared by ``workers`` processes.

    Killed and started again, it goes on from the folder ``resume``, where each variant's state and result are
    kept until all are done. What was made with another ``fingerprint`` (`train.fingerprint` of configuration
    and models), code or images is not used, and a message says so.
    """
    if resume:
        data = [content_hash(images) for images in (human, unlabeled, *sets.values())]
        code = code_hash(__name__, type(model).__module__)
        fingerprint = loop.fingerprint(fingerprint, code, torch.__version__, list(sets), data)

    def train(key: str) -> tuple[Refiner, pd.DataFrame]:
        variant, generator = chosen[key], torch.Generator().manual_seed(config.seed)
        # Faster, and exact enough to compare by. Without a cache: it would hold the weights as they were at
        # the start.
        with torch.autocast(model.sam.device.type, torch.bfloat16, cache_enabled=False):
            refiner = variant.build(model, generator, unlabeled) if variant.build else None
            return train_refiner(
                model,
                human,
                replace(config, **variant.changed),
                generator=generator,
                refiner=refiner,
                make=variant.make,
                progress=False,
                resume=resume and resume / f"{key}-training.pt",
                fingerprint=fingerprint,
            )

    def result(key: str) -> tuple[dict, list[dict] | None]:
        if key in ready:
            return measure_refinement(model, ready[key], sets, progress=False)["levels"], None
        path = resume and resume / f"{key}.pt"
        state = loop.load_checkpoint(path, fingerprint, loud=False)
        if not state:
            refiner, log = train(key)
            levels = measure_refinement(model, refiner, sets, progress=False)["levels"]
            state = {"levels": levels, "log": log.to_dict("records")}
            if path:
                loop.save_checkpoint(path, fingerprint, len(log), **state)
        return state["levels"], state["log"]

    titles = {key: variant.title for key, variant in chosen.items()} | {title: title for title in ready}
    bar = with_bar(each(result, list(titles), workers), "variants", progress, total=len(titles))
    results = dict(zip(titles.values(), bar))
    if resume:
        files = (f"{key}{end}.pt" for key in chosen for end in ("", "-training"))
        remove_files(resume, [resume / file for file in files])
    logs = {title: pd.DataFrame(log) for title, (_, log) in results.items() if log is not None}
    return {title: levels for title, (levels, _) in results.items()}, logs
