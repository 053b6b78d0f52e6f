"""The models of the comparison: what an entry of `runs` or `baselines` in `params.yaml` may say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from sumlib.config.schema import Fraction, NonNegative, OneOf, Reader, Seed

Budget = Annotated[str, OneOf(("small", "medium", "large"))]
Backbone = Annotated[str, OneOf(("vit_h", "vit_l", "vit_b"))]
TRAIN_SETS = {"none": "none", "small": "FT-Small", "medium": "FT-Medium", "large": "FT-Large"}
SUM = "sum"
"""The method of SUM itself, of its ablations and of its baselines."""
DISAGREEMENTS = ("discrepancy", "two-decoders")
"""Certainties that a second model gives while it is trained."""


@dataclass(frozen=True)
class RunConfig:
    """One model of the comparison (docs/method.md section 7)."""

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
    method: str = SUM
    """How it is trained: "sum" (interactive rounds, human-only and Vanilla too), or a file of methods/."""
    tuning: Annotated[str, OneOf(("full", "decoder", "adapter", "lora"))] = "full"
    """Which weights are trained: full = all; decoder = prompt encoder and mask decoder; adapter, lora = those
    plus adapters, or low-rank updates, in the frozen image encoder."""
    theta: Fraction | None = None
    """Certainty above which a pixel counts in the dice loss, if not `finetune.theta`."""
    uncertainty: Annotated[str, OneOf(("refinement", "confidence", "discrepancy", "two-decoders"))] = (
        "refinement"
    )
    """What the certainty of pseudo-labels comes from: the refined masks, or SAM's own logits; with method
    discrepancy how far student and EMA teacher (discrepancy), or two decoders (two-decoders), agree."""
    consistency: Annotated[str, OneOf(("none", "mixed", "mixed-multi", "box", "uniform-point"))] = "none"
    """With method augseg: which prompts the EMA teacher answers; "mixed-multi" trains on its masks in all
    rounds, the others in one. They replace the pseudo-labels, or, with `uncertainty_loss`, both are used,
    with half of the weight each."""
    contrast: NonNegative = 0.0
    """With method u2pl: weight of the contrastive loss."""
    backbone: Backbone = "vit_h"
    """Foundation model that it starts from, or that a baseline is."""
    pseudo_labels: str = ""
    """File of pseudo-labels and maps, `label_name` of the budget and of who made them; empty: none."""

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


def method_names() -> list[str]:
    """What `RunConfig.method` may say: "sum", and the files of sumlib/methods/ that state a METHOD.

    The files are read, not imported: they need torch.
    """
    return [SUM, *_stating("METHOD")]


def methods_with_architecture() -> list[str]:
    """The methods whose models are no SAM inside: the files of sumlib/methods/ that state an ARCHITECTURE.

    >>> "hq_sam" in methods_with_architecture()
    True
    """
    return _stating("ARCHITECTURE")


def _stating(name: str) -> list[str]:
    """The files of sumlib/methods/, sorted, with a line that makes `name` a class."""
    line = re.compile(rf"^{name} = [A-Z]\w*$", re.MULTILINE)
    folders = find_spec("sumlib.methods").submodule_search_locations
    files = [file for folder in folders for file in Path(folder).glob("*.py")]
    return sorted(file.stem for file in files if line.search(file.read_text(encoding="utf-8")))


def nearest(name: str, known: list[str]) -> str:
    """The names of ``known`` that are most like ``name``, or all of them, for an error message.

    >>> nearest("u2p", ["sum", "augseg", "u2pl"])
    'u2pl'
    """
    return ", ".join(get_close_matches(str(name), known, n=3, cutoff=0.5) or known)


_BY_SETTINGS = (SUM, "augseg", "discrepancy", "hq_sam")
"""Methods that use certainty only where a run says so; u2pl, and methods of others, may always do."""
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
            "pseudo_labels": "",
        },
    ),
    (
        "without uncertainty_loss",
        lambda run: run.method in _BY_SETTINGS and not run.uncertainty_loss,
        {"theta": None},
    ),
    (
        "without uncertainty_loss and uncertainty_sampling, as no certainty is used",
        lambda run: run.method in _BY_SETTINGS and not (run.uncertainty_loss or run.uncertainty_sampling),
        {"uncertainty": "refinement"},
    ),
    ("without method: augseg", lambda run: run.method != "augseg", {"consistency": "none"}),
    ("without method: u2pl", lambda run: run.method != "u2pl", {"contrast": 0.0}),
    (
        "with method augseg alone, whose masks have no certainty",
        lambda run: run.method == "augseg" and not run.uncertainty_loss,
        {"uncertainty_sampling": False, "labels": "sam"},
    ),
    ("with method augseg", lambda run: run.method == "augseg", {"uncertainty": "refinement"}),
    (
        "with method hq_sam, which trains its head alone",
        lambda run: run.method == "hq_sam",
        {"tuning": "full"},
    ),
)
"""Combinations of settings that are rejected because they have no effect: (why, when, allowed values)."""

_NEEDED = (
    ("augseg", "consistency", lambda value: value != "none", "mixed, mixed-multi, box or uniform-point"),
    ("u2pl", "contrast", lambda value: value > 0, "above 0"),
    ("discrepancy", "uncertainty", lambda value: value in DISAGREEMENTS, " or ".join(DISAGREEMENTS)),
)
"""What a method needs to be told: (method, key, test, allowed values)."""


def _check_method(reader: Reader, run: RunConfig, where: str) -> None:
    """The method exists, has what it needs and nothing without effect."""
    if run.method not in (known := method_names()):
        reader.fail(f"{where}.method is {run.method!r}; the nearest are: {nearest(run.method, known)}")
    for condition, when, settings in _MEANINGLESS:
        for key, off in settings.items():
            if when(run) and getattr(run, key) != off:
                reader.fail(f"{where}.{key} is {getattr(run, key)!r}; allowed: {off!r} {condition}")
    for method, key, fits, allowed in _NEEDED:
        if run.method == method and not fits(getattr(run, key)):
            reader.fail(f"{where}.{key} is {getattr(run, key)!r}; allowed with method {method}: {allowed}")
    if run.method != "discrepancy" and run.uncertainty in DISAGREEMENTS:
        reader.fail(
            f"{where}.uncertainty is {run.uncertainty!r}; allowed without method: discrepancy: "
            "refinement or confidence"
        )


def read_runs(
    reader: Reader, entries: Any, where: str, budget_of: Mapping[str, str] | None = None
) -> dict[str, RunConfig]:
    """The runs of one section by name, each checked for settings that have no effect together.

    `budget_of` holds the pseudo-labels that there are and the budget of each; None: none.
    """
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
        known = [labels for labels, budget in (budget_of or {}).items() if budget == run.budget]
        if run.unlabeled and run.pseudo_labels not in known:
            reader.fail(
                f"{named}.pseudo_labels is {run.pseudo_labels!r}; allowed with budget {run.budget}: "
                f"one of {', '.join(known)}"
            )
        if where != "baselines" and run.unlabeled != (where == "with_labels"):
            other = "with_labels" if run.unlabeled else "human_only"
            reader.fail(f"{named}.unlabeled is {str(run.unlabeled).lower()}; put it under {other}")
        _check_method(reader, run, named)
    seen: dict[tuple, str] = {}
    for name, run in runs.items():  # reports average over the seeds of a model
        same = seen.setdefault((run.model, run.budget, run.seed), name)
        if same != name:
            reader.fail(
                f"{where}.{name} has the model, budget and seed of {same}, and reports would mix the two; "
                "give it another seed, or another `model:` to be shown by itself"
            )
    return runs
