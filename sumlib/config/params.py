"""The only reader of YAML: `params.yaml` as small frozen dataclasses.

`params.yaml` holds a section per stage, in each section an entry per profile (smoke, micro, paper), and the
models: `runs` (fine-tuned) and `baselines` (evaluated only). The profile is, in this order, the argument of
`load_config`, the environment variable SUM_PROFILE, the key `profile` of the file.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import yaml

from sumlib.base.paths import PARAMS, ROOT
from sumlib.config.runs import Budget, RunConfig, read_runs
from sumlib.config.schema import (
    ConfigError,
    Count,
    Fraction,
    NonNegative,
    OneOf,
    Positive,
    Range,
    Reader,
    Seed,
)


@dataclass(frozen=True)
class ModelConfig:
    """The foundation model that everything starts from."""

    type: Annotated[str, OneOf(("micro", "micro_l", "micro_b", "vit_b", "vit_l", "vit_h"))]
    """Architecture, a name that `sumlib.model.checkpoint.load_sam` knows."""
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


DATASET_ROLES = ("train", "dev", "test", "additional")


@dataclass(frozen=True)
class DatasetConfig:
    """One data set: where it lies under the data root and how it is read."""

    folders: tuple[str, ...]
    """Relative to the data root; the first that exists is read."""
    layout: str
    """Its reader, "<file of sumlib/data/layouts>.<function>", for example "pairs.hqseg"."""
    task: Annotated[str, OneOf(("unspecified", "salient", "entity", "part"))]
    """What kind of mask it holds (`sumlib.data.tasks.Task`, in small letters)."""
    group: str = ""
    """Group of the tables that it counts in: "salient", "entity", "part", "additional"; empty: none."""
    first: Count | None = None
    """Only this many samples, as the paper does; null: all."""
    options: dict = field(default_factory=dict)
    """Keyword arguments of the layout's function beside the folder."""
    role: str = ""
    """What it is for: one of `DATASET_ROLES`, the part of section `datasets` that holds it."""


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
    shares: Count
    """Parts of an iteration's images on a CPU, each with its own random numbers and a process where there are cores; a divisor of `images`."""
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
    """Processes that share the test sets on a CPU, at most."""


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
    datasets: dict[str, DatasetConfig]
    """Every data set by name, those of all roles, in the order of the file."""

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
        return (
            replace(self, model=getattr(self.backbones, backbone)) if backbone in ("vit_l", "vit_b") else self
        )

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
        return [self.finetune.human_prompts] * human, [
            rest // unlabeled + (k < rest % unlabeled) for k in range(unlabeled)
        ]


SECTIONS = {
    name: hint for name, hint in get_type_hints(Config).items() if name not in ("profile", "runs", "datasets")
}


def load_config(profile: str | None = None, path: Path = PARAMS) -> Config:
    """Read and check `path`. Raises ConfigError, or FileNotFoundError if the file is missing."""
    reader, params = _read(path)
    chosen = profile or os.environ.get("SUM_PROFILE") or params["profile"]
    sections = {name: _section(reader, kind, params[name], name, chosen) for name, kind in SECTIONS.items()}
    baselines, runs = (read_runs(reader, params[name], name) for name in ("baselines", "runs"))
    if (settings := sections["finetune"]).images % settings.shares:
        reader.fail(
            f"finetune.{chosen}.shares is {settings.shares}, which does not divide images, {settings.images}"
        )
    if settings.human_prompts > settings.prompts_per_image:
        reader.fail(
            f"finetune.{chosen}.human_prompts is {settings.human_prompts}; "
            f"allowed: at most prompts_per_image, {settings.prompts_per_image}"
        )
    if both := baselines.keys() & runs.keys():
        reader.fail(f"runs.{min(both)} has the name of a baseline; give it another")
    datasets = _datasets(reader, params["datasets"])
    return Config(profile=chosen, runs=baselines | runs, datasets=datasets, **sections)


def load_datasets(path: Path = PARAMS) -> dict[str, DatasetConfig]:
    """Section `datasets` of `path` alone: every data set by name. Raises as `load_config`."""
    reader, params = _read(path)
    return _datasets(reader, params["datasets"])


def _read(path: Path) -> tuple[Reader, dict[str, Any]]:
    """A reader for `path` and its sections as plain values."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; restore it with `git checkout {path.name}`")
    try:
        params = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    reader = Reader(path.name)
    return reader, reader.mapping(params, "", ("profile", *SECTIONS, "datasets", "baselines", "runs"))


def _datasets(reader: Reader, section: Any) -> dict[str, DatasetConfig]:
    """All data sets of the roles of one section by name; no name may stand twice."""
    datasets: dict[str, DatasetConfig] = {}
    for role, entries in reader.mapping(section, "datasets", DATASET_ROLES).items():
        if not isinstance(entries, Mapping):
            reader.fail(f"datasets.{role} must hold a data set for each key, not {entries!r}")
        for name, entry in entries.items():
            if name in datasets:
                reader.fail(f"datasets.{role}.{name} stands under {datasets[name].role}, too; remove one")
            datasets[name] = reader.record(DatasetConfig, entry, f"datasets.{role}.{name}", role=role)
    return datasets


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of silently taking the last value."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def _section(reader: Reader, kind: type, profiles: Any, name: str, chosen: str):
    """The dataclass `kind` of the chosen profile. The other profiles are checked as well."""
    if not isinstance(profiles, Mapping):
        reader.fail(f"{name} must hold an entry for each profile, not {profiles!r}")
    if chosen not in profiles:
        reader.fail(f"no profile {chosen!r} in section {name}; it has {', '.join(map(str, profiles))}")
    return {key: reader.record(kind, value, f"{name}.{key}") for key, value in profiles.items()}[chosen]
