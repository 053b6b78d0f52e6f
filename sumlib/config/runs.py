"""The models of the comparison: what an entry of `runs` or `baselines` in `params.yaml` may say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from sumlib.config.schema import Fraction, NonNegative, OneOf, Reader, Seed

Budget = Annotated[str, OneOf(("small", "medium", "large"))]
Backbone = Annotated[str, OneOf(("vit_h", "vit_l", "vit_b"))]
LABELLERS = ("sam", "vit_l", "vit_b", "sum")
"""Who makes pseudo-labels and maps: SAM, SAM with another backbone, or SUM, fine-tuned at FT-Medium (self-training)."""
TRAIN_SETS = {"none": "none", "small": "FT-Small", "medium": "FT-Medium", "large": "FT-Large"}


@dataclass(frozen=True)
class RunConfig:
    """One model of the comparison (METHOD.md section 7)."""

    name: str
    """Key in `params.yaml`, for example "sum-medium-seed1"."""
    model: str
    """The paper's name of the model, for example "SUM w/o Task Prompt"."""
    budget: Annotated[str, OneOf(tuple(TRAIN_SETS))]
    """Human annotations used; none: not fine-tuned."""
    unlabeled: bool = False
    """Train on the pseudo-labels too."""
    uncertainty_loss: bool = False
    """Weight the losses on pseudo-labels by certainty (eq. 1 and 2)."""
    uncertainty_sampling: bool = False
    """Draw the prompts on pseudo-labels by certainty."""
    task_prompt: Annotated[str, OneOf(("none", "first", "continuous"))] = "none"
    """Rounds that get the task prompt: none, the first, or all."""
    labels: Annotated[str, OneOf(("sam", "refined"))] = "sam"
    """Pseudo-labels: SAM's masks, or the refined ones."""
    seed: Seed = 0
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
    uncertainty: Annotated[str, OneOf(("refinement", "confidence", "discrepancy", "two-decoders"))] = (
        "refinement"
    )
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


_MEANINGLESS = (
    (
        "while unlabeled is false",
        lambda run: not run.unlabeled,
        {
            "uncertainty_loss": False,
            "uncertainty_sampling": False,
            "labels": "sam",
            "theta": None,
            "uncertainty": "refinement",
            "consistency": "none",
            "contrast": 0.0,
        },
    ),
    (
        "with consistency alone, whose masks have no certainty",
        lambda run: run.consistency != "none" and not run.uncertainty_loss,
        {"uncertainty_sampling": False, "labels": "sam", "contrast": 0.0},
    ),
    ("with consistency", lambda run: run.consistency != "none", {"uncertainty": "refinement"}),
    (
        "with tuning hq, which trains on one prompt",
        lambda run: run.tuning == "hq" and run.uncertainty != "confidence",
        {"uncertainty": "refinement", "consistency": "none", "contrast": 0.0},
    ),
)
"""Combinations of a run's settings that mean nothing: (why, when, what the settings must be)."""


def read_runs(reader: Reader, entries: Any, where: str) -> dict[str, RunConfig]:
    """The runs of one section by name, each checked for combinations that mean nothing."""
    if not isinstance(entries, Mapping):
        reader.fail(f"{where} must hold a run for each key, not {entries!r}")
    runs = {
        name: reader.record(RunConfig, item, f"{where}.{name}", name=str(name))
        for name, item in entries.items()
    }
    for name, run in runs.items():
        if (run.budget == "none") != (where == "baselines"):
            reader.fail(
                f"{where}.{name}.budget is {run.budget!r}; allowed: none for a baseline, a budget for a run"
            )
        named = f"{where}.{name}"
        known = [label_name(run.budget, labeller) for labeller in LABELLERS]
        if run.unlabeled and run.pseudo_labels not in known:
            reader.fail(
                f"{named}.pseudo_labels is {run.pseudo_labels!r}; allowed with budget {run.budget}: one of {', '.join(known)}"
            )
        for condition, when, settings in _MEANINGLESS:
            for key, off in settings.items():
                if when(run) and getattr(run, key) != off:
                    reader.fail(f"{named}.{key} is {getattr(run, key)!r}; allowed: {off!r} {condition}")
    return runs
