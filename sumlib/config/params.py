"""The only reader of YAML: `params.yaml` as small frozen dataclasses.

`params.yaml` holds a section per stage, in each section an entry per profile (smoke, micro, paper), and the
models: `runs` (fine-tuned) and `baselines` (evaluated only). The profile is, in this order, the argument of
`load_config`, the environment variable SUM_PROFILE, the key `profile` of the file.
"""

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import yaml

from sumlib.base.paths import PARAMS, ROOT
from sumlib.config.runs import (
    Backbone,
    Budget,
    RunConfig,
    label_name,
    methods_with_architecture,
    nearest,
    read_runs,
)
from sumlib.config.schema import (
    MOST,
    ConfigError,
    Count,
    Fraction,
    NonNegative,
    OneOf,
    Positive,
    Range,
    Reader,
    Seed,
    Whole,
    shown,
)


@dataclass(frozen=True)
class ModelConfig:
    """The foundation model that everything starts from."""

    type: Annotated[str, OneOf(("micro", "micro_l", "micro_b", "vit_b", "vit_l", "vit_h"))]
    """Architecture, a name that `sumlib.model.checkpoint.load_sam` knows."""
    checkpoint: str
    """Weights, .safetensors or .pth; relative to the repository, or absolute. Keep your own in models/: DVC
    owns data/ and deletes what it does not know there."""
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
    """Folder of the data sets; relative to the repository, or absolute. Keep your own in datasets/ or
    outside: DVC owns data/ and deletes what it does not know there."""
    unlabeled: str
    """Data set whose images get pseudo-labels (docs/method.md section 2)."""
    human: dict[Budget, tuple[str, ...]]
    """Human-annotated data sets of each budget (docs/method.md section 6)."""
    human_to_unlabeled: dict[Budget, Positive]
    """Human images for one unlabeled image in a training batch, for each budget (docs/method.md §5)."""


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
class MaskNoiseConfig:
    """HQ-SAM's noised masks: human masks as mask prompts, wrong near their outline."""

    noise: NonNegative
    """Standard deviation of the noise that is added to blurred masks, which are cut at one half."""
    logit: Positive
    """Logit of the mask prompt inside; outside it is minus that."""


@dataclass(frozen=True)
class RefineConfig:
    """Training of the mask-refinement module (docs/method.md section 3)."""

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
    focal_weight: NonNegative
    """Weight of the focal loss (docs/method.md section 4)."""
    dice_weight: NonNegative
    """Weight of the dice loss."""
    iou_weight: NonNegative
    """Weight of the squared error of the predicted IoU."""
    warmup: Fraction
    """Share of the steps that warm up."""
    clip: Positive
    """Largest gradient norm."""
    checks: Count
    """Times that the held-out masks are refined in a training, besides the start."""
    held_out: Count
    """Masks at most that are refined then."""
    mask_noise: MaskNoiseConfig
    """Of the synthetic masks that take the place of SAM's in two of the variants."""


@dataclass(frozen=True)
class VariantsConfig:
    """The other ways to build and train the refinement module; the rest is as in `RefineConfig`."""

    iterations: Count
    """Optimiser steps of every variant, the method's own module among them."""
    mae_iterations: Count
    """Optimiser steps of the masked autoencoder that pre-trains an image encoder."""
    mae_images: Count
    """Images in one of its steps."""
    mae_hidden: Fraction
    """Share of the blocks that are blank in them."""
    mae_lr: Positive
    """Its peak learning rate."""
    mae_weight_decay: NonNegative
    """Its weight decay."""
    mae_warmup: Fraction
    """Share of its steps that warm up."""
    mae_clip: Positive
    """Its largest gradient norm."""
    adapter_width: Count
    """Inner width of the adapters in the image encoder."""
    limit_images: Count | None
    """Only the first images of each human-annotated and of the unlabeled set; null: all."""


@dataclass(frozen=True)
class PseudoLabelConfig:
    """SAM's automatic masks on the unlabeled images (docs/method.md section 2)."""

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
class U2plConfig:
    """U2PL's contrastive term (runs with `method: u2pl`)."""

    anchors: Count
    """Certain foreground cells drawn from each mask."""
    negatives: Count
    """Background cells drawn from each mask."""
    temperature: Positive
    """By which similarities are divided."""


@dataclass(frozen=True)
class AugSegConfig:
    """AugSeg's strong view of an image: how far each change goes; pixels are normalised (method augseg)."""

    probability: Fraction
    """Of each of the four changes: light, colour, blur, noise."""
    contrast: Fraction
    """Light: all channels times 1 +- this at most."""
    brightness: NonNegative
    """Light: all channels plus or minus this at most."""
    gain: Fraction
    """Colour: each channel times 1 +- this at most."""
    shift: NonNegative
    """Colour: each channel plus or minus this at most."""
    noise: NonNegative
    """Largest standard deviation of the noise."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Interactive fine-tuning, the same for every run (docs/method.md sections 4 and 5)."""

    iterations: Count
    """Optimiser steps."""
    images: Annotated[int, Range(2, MOST)]
    """Images in a step, human and unlabeled together; `Config.images_per_iteration` splits them."""
    prompts_per_image: Count
    """Masks drawn from an image, on average: a step has `images` x `prompts_per_image` prompts, whatever the
    run."""
    human_prompts: Count
    """Masks drawn from each human image in runs with unlabeled images, whose many masks share the rest of
    the prompts."""
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
    warmup: Whole
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
    """Number of equal parts that a step on a CPU is split into; each has its own random generator and, if
    cores allow, its own process. Must divide `images`."""
    adapter_width: Count
    """Inner width of adapters (runs with `tuning: adapter`)."""
    lora_rank: Count
    """Rank of low-rank updates (runs with `tuning: lora`)."""
    light_lr: Positive
    """Peak learning rate of adapters and low-rank updates."""
    ema: Annotated[float, Range(0, 1)]
    """Momentum of the teacher's weights (runs with a teacher)."""
    u2pl: U2plConfig
    """U2PL's own settings."""
    augseg: AugSegConfig
    """AugSeg's own settings."""
    mask_noise: MaskNoiseConfig
    """Of HQ-SAM's mask prompts (runs with `method: hq_sam`)."""
    hq_points: Count
    """Points of HQ-SAM's point prompts."""
    box_jitter: Fraction
    """Largest move of each side of a box prompt, as a share of the box's size."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Interactive evaluation (docs/method.md section 8)."""

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
class PretrainConfig:
    """How a shipped foundation model of the micro world was made."""

    type: Annotated[str, OneOf(("micro", "micro_l", "micro_b"))]
    """Architecture, the key of the entry: `micro` is pre-trained, the others are distilled from it."""
    scenes: Count
    """Scenes that it is trained on."""
    iterations: Count
    """Optimiser steps before the finish."""
    dense_only: Fraction
    """Share of the iterations with the auxiliary heads, or the teacher's embeddings, alone."""
    images: Count
    """Per iteration, shared by the workers."""
    prompts: Count
    """Masks drawn from each image."""
    workers: Count
    """Data-parallel processes of one thread each; on two cores a quarter faster than two threads of one
    process."""
    rounds: tuple[Annotated[int, Range(1, 20)], ...]
    """Interactive rounds of the iterations, in turn."""
    late: Fraction
    """Share of the iterations after which `late_rounds` and SAM's own loss are used."""
    late_rounds: tuple[Annotated[int, Range(1, 20)], ...]
    """Interactive rounds of those iterations, in turn."""
    lr: Positive
    """Peak learning rate of AdamW."""
    finish: Whole
    """Iterations afterwards with `finish_rounds` and clicks as people make them; the rate rises to
    `finish_lr`."""
    finish_rounds: tuple[Annotated[int, Range(1, 20)], ...]
    """Interactive rounds of the finish, in turn."""
    finish_lr: Positive
    """Peak learning rate of the finish."""
    weight_decay: NonNegative
    """Weight decay of AdamW."""
    box_jitter: Fraction
    """Largest move of each side of a box prompt, as a share of the box's size."""
    seed: Seed
    """Seed of the generators."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.iterations + self.finish

    def lr_at(self, step: int) -> float:
        """Warm-ups at the start, at the first interactive round and at the finish; two cosines."""
        if step >= self.iterations:
            done = step - self.iterations
            return (
                self.finish_lr
                * min(1.0, (done + 1) / 30)
                * max(0.01, 0.5 * (1 + math.cos(math.pi * done / self.finish)))
            )
        warm = min(1.0, (step + 1) / 100, (abs(step - int(self.dense_only * self.iterations)) + 10) / 60)
        return self.lr * warm * max(0.01, 0.5 * (1 + math.cos(math.pi * step / self.iterations)))


@dataclass(frozen=True)
class LabellerConfig:
    """Who makes pseudo-labels: the foundation model, one with another image encoder, or a fine-tuned run."""

    labeller: str
    """Its name, the key of the entry."""
    masks: str
    """Stem of the file of its masks, `artifacts/pseudo_label/<masks>.parquet`."""
    model: str
    """File or folder of its model, for DVC: the stages that use it wait for that."""
    backbone: Backbone = "vit_h"
    """Which foundation model it is, if it is no run."""
    run: str = ""
    """Run whose model it is; empty: the foundation model."""


@dataclass(frozen=True)
class RefinerConfig(LabellerConfig):
    """A refinement module: whose masks it sharpens, and the human masks that train it."""

    budget: Budget = "medium"
    """Human annotations that train it."""


@dataclass(frozen=True)
class Config:
    """All parameters of one profile."""

    profile: str
    model: ModelConfig
    backbones: BackbonesConfig
    data: DataConfig
    refine: RefineConfig
    variants: VariantsConfig
    pseudo_label: PseudoLabelConfig
    finetune: FinetuneConfig
    evaluate: EvaluateConfig
    runs: dict[str, RunConfig]
    """Every model by name: the baselines, then the fine-tuned runs."""
    datasets: dict[str, DatasetConfig]
    """Every data set by name, those of all roles, in the order of the file."""
    labellers: dict[str, LabellerConfig]
    """Who makes pseudo-labels, by name."""
    pretrain: dict[str, PretrainConfig]
    """How the foundation models of the micro world were made, by architecture."""
    refiners: dict[str, RefinerConfig]
    """The refinement modules by name, which is also that of the pseudo-labels with their maps."""

    @property
    def data_root(self) -> Path:
        """Absolute folder of the data sets."""
        return ROOT / self.data.root

    @property
    def checkpoint(self) -> Path:
        """Absolute path of the foundation checkpoint."""
        return ROOT / self.model.checkpoint

    def run(self, name: str) -> RunConfig:
        """The run `name`; ConfigError with the nearest names if there is none."""
        if name not in self.runs:
            near = difflib.get_close_matches(str(name), self.runs, n=3, cutoff=0.3) or sorted(self.runs)
            raise ConfigError(f"no run {name!r} in {PARAMS.name}; the nearest are: {', '.join(near)}")
        return self.runs[name]

    def labeller(self, name: str) -> LabellerConfig:
        """The labeller `name`; ConfigError with the nearest names if there is none."""
        if name not in self.labellers:
            near = nearest(name, list(self.labellers))
            raise ConfigError(f"no labeller {name!r} in {PARAMS.name}; the nearest are: {near}")
        return self.labellers[name]

    def with_backbone(self, backbone: str) -> "Config":
        """The same with another foundation model: "vit_l", "vit_b"; "vit_h" is the one it has."""
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
        """Masks drawn from each human image and from each unlabeled image in a step; their sum is the same
        for every run."""
        human, unlabeled = self.images_per_iteration(run)
        total = self.finetune.images * self.finetune.prompts_per_image
        if not unlabeled:
            return [self.finetune.prompts_per_image] * human, []
        rest = total - human * self.finetune.human_prompts
        return [self.finetune.human_prompts] * human, [
            rest // unlabeled + (k < rest % unlabeled) for k in range(unlabeled)
        ]


OTHERS = ("profile", "runs", "datasets", "labellers", "refiners", "pretrain")
SECTIONS = {name: hint for name, hint in get_type_hints(Config).items() if name not in OTHERS}
"""The sections that hold an entry for each profile, and their dataclasses."""
RUN_SECTIONS = ("human_only", "with_labels")
"""The sections that `runs` merges."""
LARGEST_FILE, LARGEST_TREE = 1_000_000, 30_000
"""Bytes of a parameter file, and values in it with every alias written out, at most."""


def load_config(profile: str | None = None, path: Path = PARAMS) -> Config:
    """Read and check `path`. Raises ConfigError, or FileNotFoundError if the file is missing."""
    reader, params = _read(path)
    profile = _profile(reader, params, profile)
    sections = {name: _section(reader, kind, params[name], name, profile) for name, kind in SECTIONS.items()}
    _check_finetune(reader, sections["finetune"], f"finetune.{profile}")
    refiners = _entries(reader, RefinerConfig, params["refiners"], "refiners")
    config = Config(
        profile=profile,
        runs=_runs(reader, params, {name: refiner.budget for name, refiner in refiners.items()}),
        datasets=_datasets(reader, params["datasets"]),
        labellers=_entries(reader, LabellerConfig, params["labellers"], "labellers"),
        refiners=refiners,
        pretrain=_entries(reader, PretrainConfig, params["pretrain"], "pretrain"),
        **sections,
    )
    _check_names(reader, config)
    return config


def _profile(reader: Reader, params: Mapping[str, Any], profile: str | None) -> str:
    """The profile that is asked for; it, and the one that the file names, must be known."""
    if not isinstance(params["model"], Mapping):
        reader.fail(f"model must hold an entry for each profile, not {shown(params['model'])}")
    known = [str(key) for key in params["model"] if not _is_base(key)]
    asked = {"profile": params["profile"], "SUM_PROFILE": os.environ.get("SUM_PROFILE"), "": profile}
    for source, name in asked.items():
        if (name or source == "profile") and name not in known:
            said = f"{source} is {shown(name)}" if source else f"no profile {shown(name)}"
            reader.fail(f"{said}; the nearest are: {nearest(str(name), known)}")
    return profile or asked["SUM_PROFILE"] or params["profile"]


def _check_finetune(reader: Reader, settings: FinetuneConfig, where: str) -> None:
    if settings.images % settings.shares:
        reader.fail(f"{where}.shares is {settings.shares}, which does not divide images, {settings.images}")
    if settings.human_prompts > settings.prompts_per_image:
        reader.fail(
            f"{where}.human_prompts is {settings.human_prompts}; "
            f"allowed: at most prompts_per_image, {settings.prompts_per_image}"
        )


def _runs(reader: Reader, params: Mapping[str, Any], budget_of: Mapping[str, str]) -> dict[str, RunConfig]:
    """The baselines, then all runs; section `runs` must be what `RUN_SECTIONS` hold together."""
    runs = read_runs(reader, params["baselines"], "baselines")
    for section in RUN_SECTIONS:
        for name, run in read_runs(reader, params[section], section, budget_of).items():
            if name in runs:
                other = "a baseline" if runs[name].budget == "none" else "another run"
                reader.fail(f"{section}.{name} has the name of {other}; give it another")
            runs[name] = run
    together = {name: entry for section in RUN_SECTIONS for name, entry in params[section].items()}
    if params["runs"] != together:
        reader.fail(f"runs must be what {' and '.join(RUN_SECTIONS)} hold together; put entries there")
    return runs


def _check_names(reader: Reader, config: Config) -> None:
    """Names that the file uses in one section must stand in another."""

    def known(name: str, names: Mapping, where: str) -> None:
        if name not in names:
            reader.fail(f"{where} is {shown(name)}; the nearest are: {nearest(name, list(names))}")

    for name, settings in config.pretrain.items():
        known(settings.type, {name: settings}, f"pretrain.{name}.type")
    trained = {name: run for name, run in config.runs.items() if run.budget != "none"}
    for name, labeller in config.labellers.items():
        known(labeller.labeller, {name: labeller}, f"labellers.{name}.labeller")
        if labeller.masks != (right := label_name("masks", name)):
            reader.fail(f"labellers.{name}.masks is {shown(labeller.masks)}; allowed: {right}")
        if labeller.run:
            known(labeller.run, trained, f"labellers.{name}.run")
            _check_labelling_run(reader, labeller, trained[labeller.run].method)
    for name, refiner in config.refiners.items():
        known(refiner.labeller, config.labellers, f"refiners.{name}.labeller")
        if name != (right := label_name(refiner.budget, refiner.labeller)):
            reader.fail(f"refiners.{name} must be called {right}, by its budget and labeller")
        for key in (item.name for item in fields(LabellerConfig)):
            own, right = getattr(refiner, key), getattr(config.labellers[refiner.labeller], key)
            if own != right:
                reader.fail(
                    f"refiners.{name}.{key} is {shown(own)}; allowed: {shown(right)}, as under "
                    f"labellers.{refiner.labeller}"
                )
    known(config.data.unlabeled, config.datasets, f"data.{config.profile}.unlabeled")
    for budget, names in config.data.human.items():
        for name in names:
            known(name, config.datasets, f"data.{config.profile}.human.{budget}")


def _check_labelling_run(reader: Reader, labeller: LabellerConfig, method: str) -> None:
    """A labeller that is a run, trained by `method`: a SAM, whose file is what DVC waits for."""
    where = f"labellers.{labeller.labeller}"
    if labeller.model != (right := f"artifacts/finetune/{labeller.run}.safetensors"):
        reader.fail(f"{where}.model is {shown(labeller.model)}; allowed with run {labeller.run}: {right}")
    if labeller.backbone != LabellerConfig.backbone:
        reader.fail(
            f"{where}.backbone is {shown(labeller.backbone)}; leave it out beside `run`, which has its own"
        )
    if method in (others := methods_with_architecture()):
        reader.fail(
            f"{where}.run is {shown(labeller.run)}; allowed: a run whose method has no architecture of its "
            f"own, as {', '.join(others)} has"
        )


def _entries(reader: Reader, kind: type, entries: Any, where: str) -> dict[str, Any]:
    """A dataclass for each key of a section."""
    if not isinstance(entries, Mapping):
        reader.fail(f"{where} must hold an entry for each key, not {shown(entries)}")
    return {name: reader.record(kind, entry, f"{where}.{name}") for name, entry in entries.items()}


def load_datasets(path: Path = PARAMS) -> dict[str, DatasetConfig]:
    """Section `datasets` of `path` alone: every data set by name. Raises as `load_config`."""
    reader, params = _read(path)
    return _datasets(reader, params["datasets"])


def _read(path: Path) -> tuple[Reader, dict[str, Any]]:
    """A reader for `path` and its sections as plain values, without those that only hold anchors."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; restore it with `git checkout {path.name}`")
    reader = Reader(path.name)
    if path.stat().st_size > LARGEST_FILE:
        reader.fail(f"it has {path.stat().st_size:,} bytes; allowed: {LARGEST_FILE:,}; restore it with git")
    try:
        params = _parse(reader, path.read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if isinstance(params, Mapping):
        params = {key: value for key, value in params.items() if not _is_base(key)}
    sections = ("profile", *SECTIONS, *OTHERS[1:], *RUN_SECTIONS, "baselines")
    return reader, reader.mapping(params, "", sections)


def _parse(reader: Reader, text: str) -> Any:
    """The values of a YAML text that is no larger, with its aliases written out, than `LARGEST_TREE`."""
    loader = _UniqueKeyLoader(text)
    try:
        if (node := loader.get_single_node()) is None:
            return None
        if _size(node, {}) > LARGEST_TREE:
            raise _TooLargeError
        return loader.construct_document(node)
    except _TooLargeError:
        reader.fail(f"it has more than {LARGEST_TREE:,} values, aliases written out; restore it with git")
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of nodes of a YAML tree with every alias written out; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until all below it is counted
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known) for part in below)
    return known[id(node)]


def _is_base(key: Any) -> bool:
    """Whether a key holds nothing but what others merge."""
    return isinstance(key, str) and key.startswith("_")


def _datasets(reader: Reader, section: Any) -> dict[str, DatasetConfig]:
    """All data sets of the roles of one section by name; no name may stand twice."""
    datasets: dict[str, DatasetConfig] = {}
    for role, entries in reader.mapping(section, "datasets", DATASET_ROLES).items():
        if not isinstance(entries, Mapping):
            reader.fail(f"datasets.{role} must hold a data set for each key, not {shown(entries)}")
        for name, entry in entries.items():
            if name in datasets:
                reader.fail(f"datasets.{role}.{name} stands under {datasets[name].role}, too; remove one")
            datasets[name] = reader.record(DatasetConfig, entry, f"datasets.{role}.{name}", role=role)
    return datasets


class _TooLargeError(Exception):
    """A YAML text with too many values."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of silently taking the last value, and too large
    texts."""

    nodes = 0

    def compose_node(self, parent, index):
        self.nodes += 1
        if self.nodes > LARGEST_TREE:
            raise _TooLargeError
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {shown(key.value)} stands twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _section(reader: Reader, kind: type, profiles: Any, name: str, profile: str):
    """The dataclass `kind` of the profile. The other profiles are checked as well."""
    if not isinstance(profiles, Mapping):
        reader.fail(f"{name} must hold an entry for each profile, not {shown(profiles)}")
    profiles = {key: value for key, value in profiles.items() if not _is_base(key)}
    if profile not in profiles:
        reader.fail(f"no profile {profile!r} in section {name}; it has {', '.join(map(str, profiles))}")
    return {key: reader.record(kind, value, f"{name}.{key}") for key, value in profiles.items()}[profile]
