"""The claims of `sumlib.report.claim_list`, judged by measurement.

A claim is a list of comparisons. Each is a linear contrast of models' scores with the sign that the claim
demands, its 95 % interval by the paired bootstrap over images (`sumlib.report.intervals`), and its value for
each training seed. `RULE` says how verdicts follow from them. The paper's numbers are shown beside ours and
judge nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sumlib.report.claim_list import SHOWN, Claim, Comparison, list_claims
from sumlib.report.intervals import Bootstrap, Estimate, MissingRun, image_draw, interval, ratio_difference
from sumlib.report.results import METRICS
from sumlib.report.tables import paper_tables
from sumlib.report.text import fixed

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
SMALL = 1.0  # points: a difference inside +-SMALL "does not matter"
RULE = f"""A comparison *holds* when its whole 95 % interval and the value of every training seed lie on
the claimed side of 0 (for "none": inside ±{SMALL:g} point). It *does not hold* when all of them lie on
the other side (for "none": on one side, outside ±{SMALL:g} point). Otherwise it is *undecided*. A claim
holds when all its judged comparisons hold, does not hold when one of them does not, and is undecided
otherwise. Comparisons marked *shown* are not judged. Intervals come from 2,000 paired resamples of the
test images within each data set. "seeds" gives the number of trainings and the smallest and largest
difference among them: – where there was one training, so that its spread is unknown; "1 against 3" where
a model of one training stands against one of three. Intervals are per comparison, not corrected for
their number."""


@dataclass(frozen=True)
class Finding:
    """A comparison with its verdict and its measurement: ``estimate`` is None where there is none, and
    ``why`` says why."""

    what: str
    place: str
    prompt: str
    rounds: int
    metric: str
    expected: str
    paper: float
    estimate: Estimate | None
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim with its findings, verdict and reason."""

    claim: Claim
    findings: list[Finding]
    verdict: str
    reason: str
    remark: str = ""


def decide(estimate: Estimate, expected: str) -> str:
    """Verdict of one comparison by `RULE`.

    >>> decide(Estimate(2.0, 1.0, 3.0), ">0"), decide(Estimate(2.0, 1.0, 3.0, (2.0, -0.1)), ">0")
    ('holds', 'undecided')
    >>> decide(Estimate(-2.0, -3.0, -1.0, (-2.0, 0.1)), ">0"), decide(Estimate(0.1, -0.3, 0.5), "none")
    ('undecided', 'holds')
    """
    values = (estimate.low, estimate.high, *estimate.seeds)
    if expected == SHOWN:
        return SHOWN
    if expected == "none":
        if max(map(abs, values)) < SMALL:
            return HOLDS
        return FAILS if min(values) >= SMALL or max(values) <= -SMALL else UNDECIDED
    if expected not in (">0", "<0"):
        raise ValueError(f"expected {expected!r}: choose '>0', '<0', 'none' or 'shown'")
    signed = [value if expected == ">0" else -value for value in values]
    if min(signed) > 0:
        return HOLDS
    return FAILS if max(signed) < 0 else UNDECIDED


def judge_claims(
    bootstrap: Bootstrap, refinement: Mapping[str, Mapping] | None = None, *, generator: np.random.Generator
) -> list[Judged]:
    """Measure and judge every claim.

    ``refinement``: for each budget ("refine-small", ...) the metrics that `judge_refinement` reads;
    ``generator`` draws their resamples.
    """
    paper = _paper_lookup()
    judged = []
    for claim in list_claims():
        if claim.key == "C4":
            findings = [
                finding
                for name, metrics in sorted((refinement or {}).items())
                for finding in judge_refinement(name, metrics, generator)
            ]
            why = "no refinement metrics: run `dvc repro refine`"
            findings = findings or [
                _unmeasured(Comparison("refined − SAM", {}, "", 1, prompt=""), np.nan, why)
            ]
        else:
            findings = [_measure(comparison, bootstrap, paper) for comparison in claim.comparisons]
        verdict, reason = conclude(findings)
        judged.append(Judged(claim, findings, verdict, reason))
    return judged


def _unmeasured(c: Comparison, paper: float, why: str) -> Finding:
    verdict = SHOWN if c.expected == SHOWN else UNDECIDED
    return Finding(
        c.what, c.place or str(c.where), c.prompt, c.rounds, c.metric, c.expected, paper, None, verdict, why
    )


def _measure(c: Comparison, bootstrap: Bootstrap, paper: Mapping) -> Finding:
    known = _paper_value(c, paper)
    try:
        estimate = bootstrap.compare(
            c.models, c.where, prompt=c.prompt, rounds=c.rounds, metric=c.metric, setting=c.setting
        )
    except MissingRun as error:
        return _unmeasured(c, known, str(error))
    place, verdict = c.place or str(c.where), decide(estimate, c.expected)
    return Finding(c.what, place, c.prompt, c.rounds, c.metric, c.expected, known, estimate, verdict)


def _paper_lookup() -> dict:
    keys = ["model", "train_set", "prompt", "rounds", "metric", "dataset"]
    rows = paper_tables().query("dataset != 'average' and task != 'additional'").drop_duplicates(keys)
    averages = (
        paper_tables().query("dataset == 'average'").assign(dataset=lambda t: t["task"]).drop_duplicates(keys)
    )
    return pd.concat([rows, averages]).set_index(keys)["value"].to_dict()


def _paper_value(c: Comparison, paper: Mapping) -> float:
    """The paper's value of the contrast in points; NaN where it gives none, as for SAM with a single
    output."""
    if c.setting != "oracle":
        return np.nan
    places = {c.where: 1.0} if isinstance(c.where, str) else c.where
    terms = [
        (weight * share, paper.get((*model, c.prompt, c.rounds, c.metric, name)))
        for model, weight in c.models.items()
        for name, share in places.items()
    ]
    if any(value is None for _, value in terms):
        return np.nan
    return float(sum(weight * value for weight, value in terms))


def judge_refinement(name: str, metrics: Mapping, generator: np.random.Generator) -> list[Finding]:
    """C4's findings from one file of refinement metrics, ``results/metrics/<name>.json``.

    ``metrics["levels"][level]`` has equally long lists, one entry per mask: "image" (str), "sam_iou",
    "refined_iou", "sam_biou", "refined_biou" in [0, 1]; ``metrics["certainty"]`` has "threshold" and equally
    long lists, one entry per image, of pixel counts: "certain", "certain_correct", "uncertain",
    "uncertain_correct". Judged are the mean over levels in mIoU and mBIoU, and the difference of the shares
    of correct pixels. Raises ValueError for a missing key.
    """
    try:
        return [
            *_refinement_gains(name, metrics["levels"], generator),
            _certainty_gap(name, metrics["certainty"], generator),
        ]
    except KeyError as error:
        raise ValueError(
            f"results/metrics/{name}.json lacks the key {error}: run `dvc repro refine` again"
        ) from None


def _refinement_gains(name: str, levels: Mapping[str, Mapping], generator) -> Iterator[Finding]:
    draw = image_draw(sorted({image for masks in levels.values() for image in masks["image"]}), generator)
    for metric, key in METRICS.items():
        values, samples = [], []
        for level, masks in levels.items():
            before, after = (np.asarray(masks[f"{who}_{key}"], float) for who in ("sam", "refined"))
            gain = 100 * (after - before)
            values.append(gain.mean())
            samples.append(draw(gain, masks["image"]))
            worse = f"{fixed(100 * np.mean(gain < 0), 0)} % of {len(gain)} masks get worse"
            what, estimate = f"{name}: refined − SAM's masks ({worse})", interval(values[-1], samples[-1])
            yield Finding(what, level, "point", 1, metric, SHOWN, np.nan, estimate, SHOWN)
        overall = interval(np.mean(values), np.mean(samples, axis=0))
        what = f"{name}: refined − SAM's masks, mean over levels"
        yield Finding(what, "all", "point", 1, metric, ">0", np.nan, overall, decide(overall, ">0"))


def _certainty_gap(name: str, pixels: Mapping, generator) -> Finding:
    top = np.stack([pixels["certain_correct"], pixels["uncertain_correct"]], 1)
    bottom = np.stack([pixels["certain"], pixels["uncertain"]], 1)
    estimate = ratio_difference(top, bottom, generator=generator)
    shares, theta = 100 * top.sum(0) / np.maximum(bottom.sum(0), 1), pixels["threshold"]
    sure, unsure = (f"({fixed(share)} %)" for share in shares)
    what = f"{name}: pixels with c > {theta:g} correct {sure} − the others {unsure}"
    paper = 98.0 - 28.5 if theta == 0.6 else np.nan
    return Finding(what, "all", "point", 1, "% correct", ">0", paper, estimate, decide(estimate, ">0"))


def conclude(findings: Sequence[Finding]) -> tuple[str, str]:
    """A claim's verdict by `RULE`, and its reason in a sentence that names the comparisons that did not
    hold."""
    judged = [finding for finding in findings if finding.verdict != SHOWN]
    verdicts = [finding.verdict for finding in judged]
    verdict = HOLDS if set(verdicts) == {HOLDS} else FAILS if FAILS in verdicts else UNDECIDED
    parts = [f"{verdicts.count(HOLDS)} of {len(judged)} judged comparisons hold."]
    for outcome, words in ((FAILS, "On the other side"), (UNDECIDED, "Not decided")):
        texts = [_brief(f) for f in judged if f.verdict == outcome and f.estimate is not None]
        if texts:
            parts.append(f"{words}: {'; '.join(texts)}.")
    if missing := sorted({f.why for f in judged if f.estimate is None}):
        parts.append("Not measured: " + "; ".join(missing) + ".")
    return verdict, " ".join(parts)


def _brief(f: Finding) -> str:
    e = f.estimate
    seeds = " (the seeds disagree)" if e.seeds and min(e.seeds) < 0 < max(e.seeds) else ""
    low, high = fixed(e.low, sign=True), fixed(e.high, sign=True)
    value = f"{fixed(e.value, sign=True)} [{low}, {high}]"
    return f"{f.what}, {f.place}, {point_name(f)} {f.metric} {value}{seeds}"


def point_name(f: Finding) -> str:
    """The prompt of a finding in words: "3 points"."""
    return f"{f.rounds} {f.prompt.replace('-', ' ')}{'s' if f.rounds > 1 else ''}".strip()
