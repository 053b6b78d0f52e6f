"""The only reader of YAML: `params.yaml` as small frozen dataclasses.

`params.yaml` holds a section per stage, in each section an entry per profile (smoke, micro, paper), and the
models: `runs` (fine-tuned) and `baselines` (evaluated only). The profile is, in this order, the argument of
`load_config`, the environment variable SUM_PROFILE, the key `profile` of the file.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import yaml

from sumlib.paths import PARAMS, ROOT
from sumlib.schema import ConfigError, OneOf, Range, Reader


Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Budget = Annotated[str, OneOf(("small", "medium", "large"))]
Backbone = Annotated[str, OneOf(("vit_h", "vit_l", "vit_b"))]
LABELLERS = ("sam", "vit_l", "vit_b", "sum")
"""Who makes pseudo-labels and maps: SAM, SAM with another backbone, or SUM, fine-tuned at FT-Medium (self-training)."""
TRAIN_SETS = {"none": "none", "small": "FT-Small", "medium": "FT-Medium", "large": "FT-Large"}


@dataclass(frozen=True)
class ModelConfig:
    """The foundation model that everything starts from."""

    type: Annotated[str, OneOf(("micro", "micro_l", "micro_b", "vit_b", "vit_l", "vit_h"))]
    """Architecture, a name that `sumlib.model.load_sam` knows."""
    checkpoint: str
    """Weights, .safetensors or .pth; relative to the data root, or absolute."""
    sha256: str | None
    """Expected SHA-256 of the checkpoint in hex; null: not checked."""


@dataclass(frozen=True)
class BackbonesConfig:
    """The foundation models with other image encoders; `ModelConfig` is the one that stands for ViT-H."""

    vit_l: ModelConfig
    """Stands for ViT-L."""
    vit_b: ModelConfig
    """Stands for ViT-B."""


@dataclass(frozen=True)
class DataConfig:
    """Where the data sets are and which of them train what."""

    root: str
    """Folder of the data sets; relative to the repository, or absolute."""
    unlabeled: str
    """Data set whose images get pseudo-labels (METHOD.md section 2)."""
    human: dict[Budget, tuple[str, ...]]
    """Human-annotated data sets of each budget (METHOD.md section 6)."""
    human_to_unlabeled: dict[Budget, Positive]
    """Human images for one unlabeled image in a training batch, for each budget (METHOD.md section 5)."""


@dataclass(frozen=True)
class RefineConfig:
    """Training of the mask-refinement module (METHOD.md section 3)."""

    iterations: Count
    """Optimiser steps."""
    images: Count
    """Images in a step."""
    masks_per_image: Count
    """Human masks drawn from each image."""
    lr: Positive
    """Peak learning rate of AdamW."""
    min_iou: Fraction
    """Least IoU of SAM's mask with the human mask for a training pair."""
    pred_iou_thresh: Fraction
    """Least IoU predicted by SAM for a training pair."""
    stability_thresh: Fraction
    """Least stability of SAM's mask for a training pair."""
    stability_offset: Positive
    """Logit offset of the stability score: IoU of the masks at -offset and +offset."""
    holdout: Fraction
    """Share of the human images kept out of training, to measure the refiner."""
    seed: Seed
    """Seed of the generators."""


@dataclass(frozen=True)
class PseudoLabelConfig:
    """SAM's automatic masks on the unlabeled images (METHOD.md section 2)."""

    points_per_side: Count
    """The prompts are a square grid of this many points a side."""
    pred_iou_thresh: Fraction
    """Least predicted IoU of a kept mask."""
    stability_thresh: Fraction
    """Least stability of a kept mask."""
    stability_offset: Positive
    """Logit offset of the stability score: IoU of the masks at -offset and +offset."""
    nms_thresh: Fraction
    """Box IoU above which the mask with the lower predicted IoU is dropped."""
    max_area_fraction: Fraction
    """Masks covering at least this share of the image are dropped."""
    limit_images: Count | None
    """Only the first images of the unlabeled set; null: all."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Interactive fine-tuning, the same for every run (METHOD.md sections 4 and 5)."""

    iterations: Count
    """Optimiser steps."""
    images: Annotated[int, Range(2)]
    """Images in a step, human and unlabeled together; `Config.images_per_iteration` splits them."""
    prompts_per_image: Count
    """Masks drawn from an image, on average: a step has `images` x `prompts_per_image` prompts, whatever the run."""
    human_prompts: Count
    """Masks drawn from each human image in runs with unlabeled images, whose many masks share the rest of the prompts."""
    rounds: Annotated[int, Range(1, 20)]
    """Interactive rounds for each mask."""
    lr: Positive
    """Peak learning rate of AdamW."""
    layer_decay: Annotated[float, Range(0, 1, above=True)]
    """Factor of the learning rate from one encoder block to the one below it."""
    encoder_lr_scale: NonNegative
    """Factor of the learning rate for the whole image encoder; 0 freezes it."""
    task_prompt_lr: NonNegative
    """Peak learning rate of the task prompt."""
    weight_decay: NonNegative
    """Weight decay of AdamW."""
    warmup: Annotated[int, Range(0)]
    """Steps of linear warm-up."""
    clip: NonNegative
    """Largest gradient norm; 0: no clipping."""
    theta: Fraction
    """Certainty above which a pixel counts in the dice loss (eq. 2)."""
    focal_weight: NonNegative
    """Weight of the focal loss."""
    dice_weight: NonNegative
    """Weight of the dice loss."""
    iou_weight: NonNegative
    """Weight of the squared error of the predicted IoU."""
    bf16: bool
    """Run the forward pass under bfloat16 autocast."""
    checkpoint_every: Count
    """Steps between two checkpoints for resuming."""
    workers: Count
    """Processes that share an iteration's images on a CPU; a divisor of `images`. Results depend on it."""
    adapter_width: Count
    """Inner width of adapters (runs with `tuning: adapter`)."""
    lora_rank: Count
    """Rank of low-rank updates (runs with `tuning: lora`)."""
    light_lr: Positive
    """Peak learning rate of adapters and low-rank updates."""
    ema: Annotated[float, Range(0, 1)]
    """Momentum of the teacher's weights (runs with a teacher)."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Interactive evaluation (METHOD.md section 8)."""

    rounds: Annotated[int, Range(1, 20)]
    """Interactive rounds; round r has r prompts."""
    prompts: tuple[Annotated[str, OneOf(("point", "box", "boundary-point"))], ...]
    """First prompts, each evaluated on its own."""
    settings: tuple[Annotated[str, OneOf(("oracle", "single"))], ...]
    """Best of SAM's outputs (oracle) or one fixed output (single)."""
    boundary_distance: Count
    """Distance of a boundary point from the edge of the mask, in pixels of the original image."""
    limit_images: Count | None
    """Only the first images of each test set; null: all."""
    workers: Count
    """Processes that share the test sets on a CPU."""


@dataclass(frozen=True)
class RunConfig:
    """One model of the comparison (METHOD.md section 7)."""

    name: str
    """Key in `params.yaml`, for example "sum-medium-seed1"."""
    model: str
    """The paper's name of the model, for example "SUM w/o Task Prompt"."""
    budget: Annotated[str, OneOf(tuple(TRAIN_SETS))]
    """Human annotations used; none: not fine-tuned."""
    unlabeled: bool
    """Train on the pseudo-labels too."""
    uncertainty_loss: bool
    """Weight the losses on pseudo-labels by certainty (eq. 1 and 2)."""
    uncertainty_sampling: bool
    """Draw the prompts on pseudo-labels by certainty."""
    task_prompt: Annotated[str, OneOf(("none", "first", "continuous"))]
    """Rounds that get the task prompt: none, the first, or all."""
    labels: Annotated[str, OneOf(("sam", "refined"))]
    """Pseudo-labels: SAM's masks, or the refined ones."""
    seed: Seed
    """Seed of the generators."""
    extra_prompts: tuple[Annotated[str, OneOf(("point", "box", "boundary-point"))], ...] = ()
    """First prompts evaluated for this model besides `evaluate.prompts`."""
    extra_settings: tuple[Annotated[str, OneOf(("oracle", "single"))], ...] = ()
    """Settings evaluated for this model besides `evaluate.settings`."""
    tuning: Annotated[str, OneOf(("full", "decoder", "adapter", "lora", "hq"))] = "full"
    """What moves: everything; the prompt encoder and mask decoder; these and adapters, or low-rank updates, in the frozen image encoder; or
    HQ-SAM's head alone, by its recipe: one prompt of random kind, no rounds."""
    theta: Fraction | None = None
    """Certainty above which a pixel counts in the dice loss, if not `finetune.theta`."""
    uncertainty: Annotated[str, OneOf(("refinement", "confidence", "discrepancy", "two-decoders"))] = "refinement"
    """What the certainty of pseudo-labels comes from: the refined masks, SAM's own logits, or how far student and EMA teacher, or two decoders, agree."""
    consistency: Annotated[str, OneOf(("none", "mixed", "mixed-multi", "box", "uniform-point"))] = "none"
    """AugSeg: the masks of an EMA teacher, for prompts of that kind; "mixed-multi" over all rounds, else over one. They stand in for the pseudo-labels,
    or, with `uncertainty_loss`, beside them, half of the weight each."""
    contrast: NonNegative = 0.0
    """Weight of U2PL's contrastive loss."""
    backbone: Backbone = "vit_h"
    """Foundation model that it starts from, or that a baseline is."""
    pseudo_labels: str = ""
    """File of pseudo-labels and maps, `label_name` of the budget and of who made them; empty: none is read."""

    @property
    def train_set(self) -> str:
        """The paper's name of the fine-tuning set: none, FT-Small, FT-Medium or FT-Large."""
        return TRAIN_SETS[self.budget]


def label_name(budget: str, labeller: str) -> str:
    """Name of the files of a labeller's masks with the maps of a budget's refinement module.

    >>> label_name("medium", "sam"), label_name("medium", "vit_b")
    ('medium', 'medium-vit_b')
    """
    return budget if labeller == "sam" else f"{budget}-{labeller}"


@dataclass(frozen=True)
class Config:
    """All parameters of one profile."""

    profile: str
    model: ModelConfig
    backbones: BackbonesConfig
    data: DataConfig
    refine: RefineConfig
    pseudo_label: PseudoLabelConfig
    finetune: FinetuneConfig
    evaluate: EvaluateConfig
    runs: dict[str, RunConfig]
    """Every model by name: the baselines, then the fine-tuned runs."""

    @property
    def data_root(self) -> Path:
        """Absolute folder of the data sets."""
        return ROOT / self.data.root

    @property
    def checkpoint(self) -> Path:
        """Absolute path of the foundation checkpoint."""
        return self.data_root / self.model.checkpoint

    def run(self, name: str) -> RunConfig:
        """The run `name`; ConfigError with the nearest names if there is none."""
        if name not in self.runs:
            near = difflib.get_close_matches(str(name), self.runs, n=3, cutoff=0.3) or sorted(self.runs)
            raise ConfigError(f"no run {name!r} in {PARAMS.name}; the nearest are: {', '.join(near)}")
        return self.runs[name]

    def with_backbone(self, backbone: str) -> "Config":
        """The same with another foundation model: "vit_l", "vit_b"; "vit_h" (and the labellers "sam" and "sum") is the one it has."""
        return replace(self, model=getattr(self.backbones, backbone)) if backbone in ("vit_l", "vit_b") else self

    def images_per_iteration(self, run: RunConfig) -> tuple[int, int]:
        """(human, unlabeled) images in a step: `finetune.images` split by the ratio of the run's budget.

        The total is the same for every run. Rounded to whole images, at least one of each kind.
        """
        if not run.unlabeled:
            return self.finetune.images, 0
        ratio = self.data.human_to_unlabeled[run.budget]
        human = round(self.finetune.images * ratio / (1 + ratio))
        human = min(max(human, 1), self.finetune.images - 1)
        return human, self.finetune.images - human

    def prompts_per_iteration(self, run: RunConfig) -> tuple[list[int], list[int]]:
        """Masks drawn from each human image and from each unlabeled image in a step; their sum is the same for every run."""
        human, unlabeled = self.images_per_iteration(run)
        total = self.finetune.images * self.finetune.prompts_per_image
        if not unlabeled:
            return [self.finetune.prompts_per_image] * human, []
        rest = total - human * self.finetune.human_prompts
        return [self.finetune.human_prompts] * human, [rest // unlabeled + (k < rest % unlabeled) for k in range(unlabeled)]


SECTIONS = {name: hint for name, hint in get_type_hints(Config).items() if name not in ("profile", "runs")}


def load_config(profile: str | None = None, path: Path = PARAMS) -> Config:
    """Read and check `path`. Raises ConfigError, or FileNotFoundError if the file is missing."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; restore it with `git checkout {path.name}`")
    try:
        params = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    reader = Reader(path.name)
    params = reader.mapping(params, "", ("profile", *SECTIONS, "baselines", "runs"))
    chosen = profile or os.environ.get("SUM_PROFILE") or params["profile"]
    sections = {name: _section(reader, kind, params[name], name, chosen) for name, kind in SECTIONS.items()}
    baselines, runs = (_runs(reader, params[name], name) for name in ("baselines", "runs"))
    if (settings := sections["finetune"]).images % settings.workers:
        reader.fail(f"finetune.{chosen}.workers is {settings.workers}, which does not divide images, {settings.images}")
    if settings.human_prompts > settings.prompts_per_image:
        reader.fail(f"finetune.{chosen}.human_prompts is {settings.human_prompts}; allowed: at most prompts_per_image, {settings.prompts_per_image}")
    if both := baselines.keys() & runs.keys():
        reader.fail(f"runs.{min(both)} has the name of a baseline; give it another")
    return Config(profile=chosen, runs=baselines | runs, **sections)


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of silently taking the last value."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _section(reader: Reader, kind: type, profiles: Any, name: str, chosen: str):
    """The dataclass `kind` of the chosen profile. The other profiles are checked as well."""
    if not isinstance(profiles, Mapping):
        reader.fail(f"{name} must hold an entry for each profile, not {profiles!r}")
    if chosen not in profiles:
        reader.fail(f"no profile {chosen!r} in section {name}; it has {', '.join(map(str, profiles))}")
    return {key: reader.record(kind, value, f"{name}.{key}") for key, value in profiles.items()}[chosen]


def _runs(reader: Reader, entries: Any, where: str) -> dict[str, RunConfig]:
    """The runs of one section by name, each checked for combinations that mean nothing."""
    if not isinstance(entries, Mapping):
        reader.fail(f"{where} must hold a run for each key, not {entries!r}")
    runs = {name: reader.record(RunConfig, item, f"{where}.{name}", name=str(name)) for name, item in entries.items()}
    for name, run in runs.items():
        if (run.budget == "none") != (where == "baselines"):
            reader.fail(f"{where}.{name}.budget is {run.budget!r}; allowed: none for a baseline, a budget for a run")
        named = f"{where}.{name}"
        known = [label_name(run.budget, labeller) for labeller in LABELLERS]
        if run.unlabeled and run.pseudo_labels not in known:
            reader.fail(f"{named}.pseudo_labels is {run.pseudo_labels!r}; allowed with budget {run.budget}: one of {', '.join(known)}")
        for condition, when, settings in _MEANINGLESS:
            for key, off in settings.items():
                if when(run) and getattr(run, key) != off:
                    reader.fail(f"{named}.{key} is {getattr(run, key)!r}; allowed: {off!r} {condition}")
    return runs


_MEANINGLESS = (
    ("while unlabeled is false", lambda run: not run.unlabeled,
     {"uncertainty_loss": False, "uncertainty_sampling": False, "labels": "sam", "theta": None, "uncertainty": "refinement", "consistency": "none", "contrast": 0.0}),
    ("with consistency alone, whose masks have no certainty", lambda run: run.consistency != "none" and not run.uncertainty_loss,
     {"uncertainty_sampling": False, "labels": "sam", "contrast": 0.0}),
    ("with consistency", lambda run: run.consistency != "none", {"uncertainty": "refinement"}),
    ("with tuning hq, which trains on one prompt", lambda run: run.tuning == "hq" and run.uncertainty != "confidence",
     {"uncertainty": "refinement", "consistency": "none", "contrast": 0.0}),
)  # fmt: skip
"""Combinations of a run's settings that mean nothing: (why, when, what the settings must be)."""
