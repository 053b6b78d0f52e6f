"""The paper's claims C1-C10 (docs/method.md section 10) and this repository's central result, as comparisons.

What a claim in words means in numbers is said here, in a function of its own.
`sumlib.report.claims` measures and judges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sumlib.report.intervals import Model
from sumlib.report.results import TASKS, dataset_order

SHOWN = "shown"
"""Of a comparison that is shown and not judged."""
WHY_PARTS = (
    "`figures/rims.png` measures on the development set how far outlines learnt on whole objects carry over "
    "to parts: to their edges\ntowards the background, and to those inside the object, which no human mask "
    "of FT-Medium shows."
)

SAM: Model = ("SAM", "none")
LIGHT = ("Decoder+Prompt-Encoder FT", "Adapter FT", "LoRA FT")
"""Lightweight schemes, on salient human masks alone (docs/method.md section 7)."""


def small(model: str) -> Model:
    return (model, "FT-Small")


def medium(model: str) -> Model:
    return (model, "FT-Medium")


HUMAN, VANILLA, SUM = small("Human-annotation-only"), small("Vanilla"), medium("SUM")
PLAIN, REFINED = medium("SUM w/o Task Prompt"), medium("Mask Refinement")
ALWAYS, UNIFORM = medium("SUM Continuous TP"), medium("SUM w/o uncertainty sampling")
INTRICATE = ("DIS-VD", "ThinObject5K")
BOUNDARY = {"rounds": 1, "prompt": "boundary-point"}


@dataclass(frozen=True)
class Comparison:
    """One measured difference."""

    what: str
    models: Mapping[Model, float]
    """Weights of the contrast."""
    where: str | Mapping[str, float]
    """A task group, "all", a data set, or weights of data sets, which `place` then names."""
    rounds: int
    metric: str = "mIoU"
    expected: str = ">0"
    """">0", "<0", "none" (no difference that matters) or "shown"."""
    prompt: str = "point"
    place: str = ""
    setting: str = "oracle"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: key ("C1"), what is claimed, the comparisons that test it, and what limits the
    test."""

    key: str
    statement: str
    comparisons: Sequence[Comparison] = ()
    note: str = ""


def _grid(
    what, models, *, tasks=TASKS, rounds=(1, 3, 6), metrics=("mIoU", "mBIoU"), expected=">0", prompt="point"
) -> list[Comparison]:
    return [
        Comparison(what, models, task, n, metric, expected, prompt)
        for n in rounds
        for metric in metrics
        for task in tasks
    ]


def _forgetting(scheme: str, setting: str = "oracle") -> list[Comparison]:
    """C1 for a lightweight scheme: more on salient objects, less on the others, at 1 point."""
    models = minus(small(scheme), SAM)
    return [
        Comparison(f"{scheme} − SAM", models, task, 1, expected=expected, setting=setting)
        for task, expected in (("salient", ">0"), ("entity", "<0"), ("part", "<0"))
    ]


def _forgotten() -> list[Comparison]:
    """Tuned on salient masks alone, SAM loses entities and parts."""
    return _grid(
        "Human-only (salient) − SAM",
        minus(HUMAN, SAM),
        tasks=("entity", "part"),
        rounds=(1,),
        metrics=("mIoU",),
        expected="<0",
    )


def minus(a: Model, b: Model) -> dict[Model, float]:
    """The contrast a - b."""
    return {a: 1.0, b: -1.0}


def _central() -> Claim:
    return Claim(
        "central",
        "Human-only (salient) falls below SAM on entities and parts at 1 point; SUM (FT-Medium) is above "
        "SAM in mIoU and "
        "mBIoU in every task group at 1, 3 and 6 points, and above Vanilla in mBIoU; the task prompt helps "
        "on salient "
        "objects at 1 point.",
        _forgotten()
        + _grid("SUM − SAM", minus(SUM, SAM))
        + _grid("SUM − Vanilla", minus(SUM, medium("Vanilla")), metrics=("mBIoU",))
        + _grid(
            "SUM − SUM w/o Task Prompt",
            minus(SUM, PLAIN),
            tasks=("salient",),
            rounds=(1,),
            metrics=("mIoU",),
        ),
        WHY_PARTS,
    )


def _c1() -> Claim:
    return Claim(
        "C1",
        "Fine-tuning on salient data only raises salient scores and lowers entity and part scores below "
        "SAM, whatever the "
        "scheme.",
        _grid("Human-only (salient) − SAM", minus(HUMAN, SAM), tasks=("salient",), rounds=(1,))
        + _forgotten()
        + [c for scheme in LIGHT for c in _forgetting(scheme)]
        + _forgetting("HQ-SAM", "single")
        + _grid(
            "Human-only (salient) − SAM",
            minus(HUMAN, SAM),
            tasks=("entity", "part"),
            rounds=(3, 6),
            metrics=("mIoU",),
            expected=SHOWN,
        ),
        "HQ-SAM is compared with one fixed output of both models, as in the paper; all others with the best "
        "of three.",
    )


def _c2() -> Claim:
    return Claim(
        "C2",
        "Vanilla prevents most forgetting but gains little.",
        [
            *(
                Comparison(
                    "Vanilla − half way from Human-only to SAM (more than half of the forgetting is "
                    "prevented)",
                    {VANILLA: 1.0, HUMAN: -0.5, SAM: -0.5},
                    task,
                    1,
                )
                for task in ("entity", "part")
            ),
            Comparison(
                "half of SUM's gain over SAM − Vanilla's gain",
                {SUM: 0.5, SAM: 0.5, medium("Vanilla"): -1.0},
                "all",
                1,
            ),
            Comparison("Vanilla − SAM", minus(medium("Vanilla"), SAM), "all", 1, expected=SHOWN),
            Comparison("Vanilla (FT-Small) − SAM", minus(VANILLA, SAM), "all", 3, expected=SHOWN),
        ],
        '"Most" is read as more than half of Human-only\'s loss, "little" as less than half of SUM\'s gain '
        "at 1 point.",
    )


def _c3() -> Claim:
    return Claim(
        "C3",
        "SUM beats SAM over the rounds on all three tasks (paper: by 3-6 points mIoU and 4-7 points mBIoU), "
        "part included "
        "although no part mask is in the human data.",
        _grid("SUM − SAM", minus(SUM, SAM))
        + _grid("SUM − SAM", minus(SUM, SAM), tasks=("all",), expected=SHOWN),
        f"The sign is judged; sizes belong to the scale of the model. {WHY_PARTS}",
    )


def _c4() -> Claim:
    return Claim(
        "C4",
        "Refined masks are better than SAM's on average, not always; certainty predicts correctness.",
        note="Measured on development images, not on the test sets.",
    )


def _c5() -> Claim:
    return Claim(
        "C5",
        "Uncertainty-aware loss and sampling beat using refined masks as labels, mostly on parts.",
        _grid(
            "SUM w/o Task Prompt − Mask Refinement",
            minus(PLAIN, REFINED),
            tasks=("part", "all"),
            rounds=(1, 3),
            metrics=("mIoU",),
        )
        + [
            Comparison(
                "the same, part − mean of salient and entity",
                minus(PLAIN, REFINED),
                part_minus_rest(),
                n,
                place="part − others",
            )
            for n in (1, 3)
        ]
        + _grid(
            "SUM w/o Task Prompt − Mask Refinement",
            minus(PLAIN, REFINED),
            rounds=(6,),
            metrics=("mIoU",),
            expected=SHOWN,
        ),
        "Both without task prompt, so that only the use of the uncertainty differs.",
    )


def _c6() -> Claim:
    return Claim(
        "C6",
        "The task prompt helps at 1 point on every task; at 3 points it no longer matters; given in every "
        "round it hurts "
        "at 3 points.",
        _grid("SUM − SUM w/o Task Prompt", minus(SUM, PLAIN), rounds=(1,), metrics=("mIoU",))
        + _grid(
            "SUM − SUM w/o Task Prompt",
            minus(SUM, PLAIN),
            rounds=(3,),
            metrics=("mIoU",),
            expected="none",
        )
        + _grid(
            "SUM − SUM Continuous TP",
            minus(SUM, ALWAYS),
            tasks=("all",),
            rounds=(3,),
            metrics=("mIoU",),
        )
        + _grid(
            "SUM − SUM Continuous TP",
            minus(SUM, ALWAYS),
            rounds=(3,),
            metrics=("mIoU",),
            expected=SHOWN,
        ),
    )


def _c7() -> Claim:
    what, models = "SUM − SUM w/o uncertainty sampling", minus(SUM, UNIFORM)
    return Claim(
        "C7",
        "Uncertainty-aware sampling helps most with boundary points on intricate sets (paper: DIS-VD +4.1, "
        "ThinObject5K "
        "+4.5 mIoU).",
        [
            *(Comparison(what, models, name, **BOUNDARY) for name in INTRICATE),
            Comparison(
                "the same, mean of these two − mean of the other twelve",
                models,
                intricate_minus_rest(),
                place="intricate − others",
                **BOUNDARY,
            ),
            *(Comparison(what, models, task, expected=SHOWN, **BOUNDARY) for task in (*TASKS, "all")),
        ],
    )


def _c8() -> Claim:
    return Claim(
        "C8",
        "More human data helps: overall 1-point mIoU rises from SAM to SUM at FT-Small, FT-Medium and "
        "FT-Large.",
        [
            Comparison(f"SUM {size} − {before}", minus(("SUM", size), model), "all", 1)
            for size, before, model in (
                ("FT-Small", "SAM", SAM),
                ("FT-Medium", "SUM FT-Small", small("SUM")),
                ("FT-Large", "SUM FT-Medium", SUM),
            )
        ],
    )


def _c9() -> Claim:
    return Claim(
        "C9",
        "A theta too low hurts salient objects and entities, one too high hurts parts.",
        _grid(
            "SUM (theta 0.6) − SUM theta = 0.2",
            minus(SUM, medium("SUM theta = 0.2")),
            tasks=("salient", "entity"),
            rounds=(1, 3),
            metrics=("mIoU",),
        )
        + _grid(
            "SUM (theta 0.6) − SUM theta = 0.8",
            minus(SUM, medium("SUM theta = 0.8")),
            tasks=("part",),
            rounds=(1, 3),
            metrics=("mIoU",),
        )
        + _grid(
            "SUM (theta 0.6) − SUM theta = 0.5",
            minus(SUM, medium("SUM theta = 0.5")),
            rounds=(1, 3),
            metrics=("mIoU",),
            expected=SHOWN,
        ),
    )


def _c10() -> Claim:
    adapters = small("SUM (Encoder Adapter arch.)")
    return Claim(
        "C10",
        "It holds for ViT-B, L and H, and for lightweight SUM; full fine-tuning gains most.",
        [
            *(
                comparison
                for size in "BLH"
                for comparison in _grid(
                    f"SUM ViT-{size} − SAM ViT-{size}", minus(*_of_size(size)), rounds=(1, 6)
                )
            ),
            *_grid("SUM (Encoder Adapter arch.) − SAM", minus(adapters, SAM), rounds=(1,)),
            *_lightweight(),
        ],
        "The micro SAM stands for ViT-H, two smaller ones distilled from it for ViT-L and ViT-B. HQ-SAM's "
        "architecture is "
        "compared with SAM with one fixed output of both.",
    )


def _lightweight() -> list[Comparison]:
    """C10 for HQ-SAM's architecture, and full fine-tuning against both lightweight schemes."""
    metrics = ("mIoU", "mBIoU")
    models = minus(small("SUM (HQ-SAM arch.)"), SAM)
    hq = [
        Comparison("SUM (HQ-SAM arch.) − SAM", models, task, 1, metric, setting="single")
        for metric in metrics
        for task in TASKS
    ]
    full = [
        Comparison(
            f"SUM − SUM ({scheme} arch.)",
            minus(small("SUM"), small(f"SUM ({scheme} arch.)")),
            "all",
            1,
            metric,
        )
        for scheme in ("Encoder Adapter", "HQ-SAM")
        for metric in metrics
    ]
    return hq + full


def list_claims() -> list[Claim]:
    """The central result first, then C1-C10; C4's comparisons come from the refinement metrics
    (`judge_refinement`)."""
    return [_central(), _c1(), _c2(), _c3(), _c4(), _c5(), _c6(), _c7(), _c8(), _c9(), _c10()]


def _of_size(size: str) -> tuple[Model, Model]:
    """SUM at FT-Medium and SAM with the image encoder that stands for ViT-``size``."""
    return (medium("SUM"), SAM) if size == "H" else (medium(f"SUM ViT-{size}"), (f"SAM ViT-{size}", "none"))


def intricate_minus_rest() -> dict[str, float]:
    """Weights of data sets: the mean of the intricate ones - the mean of the others."""
    names = [name for group in dataset_order().values() for name in group]
    rest = len(names) - len(INTRICATE)
    return {name: 1 / len(INTRICATE) if name in INTRICATE else -1 / rest for name in names}


def part_minus_rest() -> dict[str, float]:
    """Weights of data sets: the mean of the part sets - the mean of the salient and the entity group."""
    groups = dataset_order()
    weights = {name: 1 / len(groups["part"]) for name in groups["part"]}
    return weights | {
        name: -0.5 / len(groups[task]) for task in ("salient", "entity") for name in groups[task]
    }
