"""The claims of `sumlib.report.claim_list`, judged by measurement.

A claim is a list of comparisons. Each is a linear contrast of models' scores with the sign that the claim demands, its 95 % interval by the paired bootstrap
over images (`sumlib.report.intervals`), and its value for each training seed. `RULE` says how verdicts follow from them. Nothing here knows what the paper measured:
its numbers are shown beside ours and judge nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from sumlib.report.claim_list import SHOWN, Claim, Comparison, list_claims, medium, minus
from sumlib.report.intervals import Bootstrap, MissingRun
from sumlib.report.resampling import Estimate, image_draw, interval, ratio_difference
from sumlib.report.results import dataset_order, fixed, markdown_table, paper_tables, write_csv, write_text

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
SMALL = 1.0  # points: a difference inside +-SMALL "does not matter"
RULE = f"""A comparison *holds* when its whole 95 % interval lies on the claimed side of 0 (for "none": inside ±{SMALL:g} point) and the value of every training
seed does too; it *does not hold* when the whole interval lies on the other side (for "none": outside ±{SMALL:g} point); otherwise it is *undecided*. A claim holds
when all its judged comparisons hold, does not hold when one of them does not, and is undecided otherwise. Comparisons marked *shown* are not judged. Intervals
come from 2,000 paired resamples of the test images within each data set; "seeds" gives the number of trainings and the smallest and largest difference among
them (– where a comparison has one training only, so that its spread is unknown). Intervals are per comparison, not corrected for their number."""


@dataclass(frozen=True)
class Finding:
    """A comparison with its measurement (`estimate` None where it could not be made, `why` then says why) and its verdict."""

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


def judge(estimate: Estimate, expected: str) -> str:
    """Verdict of one comparison by `RULE`.

    >>> judge(Estimate(2.0, 1.0, 3.0), ">0"), judge(Estimate(2.0, 1.0, 3.0, (2.0, -0.1)), ">0"), judge(Estimate(0.1, -0.3, 0.5), "none")
    ('holds', 'undecided', 'holds')
    """
    values = (estimate.low, estimate.high, *estimate.seeds)
    if expected == SHOWN:
        return SHOWN
    if expected == "none":
        if max(map(abs, values)) < SMALL:
            return HOLDS
        return FAILS if estimate.low >= SMALL or estimate.high <= -SMALL else UNDECIDED
    if expected not in (">0", "<0"):
        raise ValueError(f"expected {expected!r}: choose '>0', '<0', 'none' or 'shown'")
    sign = 1 if expected == ">0" else -1
    if min(sign * value for value in values) > 0:
        return HOLDS
    return FAILS if max(sign * estimate.low, sign * estimate.high) < 0 else UNDECIDED


def judge_claims(
    bootstrap: Bootstrap, refinement: Mapping[str, Mapping] | None = None, *, generator: np.random.Generator
) -> list[Judged]:
    """Measure and judge every claim.

    `refinement`: for each budget ("refine-small", ... and "pseudo_label") the metrics that `judge_refinement` reads; `generator` draws their resamples.
    """
    paper = _paper_lookup()
    judged = []
    for claim in list_claims():
        if claim.key == "C4":
            findings = [
                f
                for name, metrics in sorted((refinement or {}).items())
                for f in judge_refinement(name, metrics, generator)
            ]
            findings = findings or [
                Finding(
                    "refined − SAM",
                    "",
                    "",
                    1,
                    "mIoU",
                    ">0",
                    np.nan,
                    None,
                    UNDECIDED,
                    "no refinement metrics: run `dvc repro refine`",
                )
            ]
        else:
            findings = [_measure(comparison, bootstrap, paper) for comparison in claim.comparisons]
        verdict, reason = conclude(findings)
        judged.append(Judged(claim, findings, verdict, reason))
    return judged


def read(judged: Sequence[Judged], reader: Mapping[str, tuple[str, str]]) -> list[Judged]:
    """The claims with a reader's words on each: {key: (the verdict that they were written for, the words)}.

    Where the verdict has changed since, the report says so. Raises KeyError for a claim without words.
    """
    told = []
    for claim in judged:
        verdict, words = reader[claim.claim.key]
        stale = (
            ""
            if verdict == claim.verdict
            else f' (Written when the verdict was "{verdict}": to be read again.)'
        )
        told.append(replace(claim, remark=f"*Reader:* {words}{stale}"))
    return told


def _measure(comparison: Comparison, bootstrap: Bootstrap, paper: Mapping) -> Finding:
    c = comparison
    place = c.place or str(c.where)
    known = _paper_value(c, bootstrap, paper)
    try:
        estimate = bootstrap.compare(
            c.models, c.where, prompt=c.prompt, rounds=c.rounds, metric=c.metric, setting=c.setting
        )
    except MissingRun as error:
        verdict = SHOWN if c.expected == SHOWN else UNDECIDED
        return Finding(
            c.what, place, c.prompt, c.rounds, c.metric, c.expected, known, None, verdict, str(error)
        )
    return Finding(
        c.what, place, c.prompt, c.rounds, c.metric, c.expected, known, estimate, judge(estimate, c.expected)
    )


def _paper_lookup() -> dict:
    keys = ["model", "train_set", "prompt", "rounds", "metric", "dataset"]
    rows = paper_tables().query("dataset != 'average' and task != 'additional'").drop_duplicates(keys)
    averages = (
        paper_tables().query("dataset == 'average'").assign(dataset=lambda t: t["task"]).drop_duplicates(keys)
    )
    return pd.concat([rows, averages]).set_index(keys)["value"].to_dict()


def _paper_value(c: Comparison, bootstrap: Bootstrap, paper: Mapping) -> float:
    """The paper's value of the contrast in points, NaN where it gives none; SAM with a single output is in none of its tables."""
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
    """C4's findings from one file of refinement metrics.

    `metrics["levels"][level]` has equally long lists, one entry per mask: "image" (str), "sam_iou", "refined_iou", "sam_biou", "refined_biou" in [0, 1];
    `metrics["certainty"]` has "threshold" and equally long lists, one entry per image, of pixel counts: "certain", "certain_correct", "uncertain",
    "uncertain_correct". Judged: the mean over levels in mIoU and mBIoU, and the difference of the shares of correct pixels. Raises ValueError for a missing key.
    """
    findings = []
    try:
        levels = metrics["levels"]
        draw = image_draw(sorted({image for masks in levels.values() for image in masks["image"]}), generator)
        for metric, key in (("mIoU", "iou"), ("mBIoU", "biou")):
            means = []
            for level, masks in levels.items():
                gain = 100 * (
                    np.asarray(masks[f"refined_{key}"], float) - np.asarray(masks[f"sam_{key}"], float)
                )
                means.append((gain.mean(), draw(gain, masks["image"])))
                what = f"{name}: refined − SAM's masks ({fixed(100 * np.mean(gain < 0), 0)} % of {len(gain)} masks get worse)"
                findings.append(
                    Finding(what, level, "point", 1, metric, SHOWN, np.nan, interval(*means[-1]), SHOWN)
                )
            overall = interval(
                np.mean([value for value, _ in means]), np.mean([samples for _, samples in means], axis=0)
            )
            findings.append(
                Finding(
                    f"{name}: refined − SAM's masks, mean over levels",
                    "all",
                    "point",
                    1,
                    metric,
                    ">0",
                    np.nan,
                    overall,
                    judge(overall, ">0"),
                )
            )
        sure = metrics["certainty"]
        top, bottom = (
            np.stack([sure["certain_correct"], sure["uncertain_correct"]], 1),
            np.stack([sure["certain"], sure["uncertain"]], 1),
        )
    except KeyError as error:
        raise ValueError(
            f"results/metrics/{name}.json lacks the key {error}: run `dvc repro refine` again"
        ) from None
    estimate = ratio_difference(top, bottom, generator=generator)
    shares = 100 * top.sum(0) / np.maximum(bottom.sum(0), 1)
    what = f"{name}: pixels with c > {sure['threshold']:g} correct ({fixed(shares[0])} %) − the others ({fixed(shares[1])} %)"
    return [
        *findings,
        Finding(
            what,
            "all",
            "point",
            1,
            "% correct",
            ">0",
            98.0 - 28.5 if sure["threshold"] == 0.6 else np.nan,
            estimate,
            judge(estimate, ">0"),
        ),
    ]


def conclude(findings: Sequence[Finding]) -> tuple[str, str]:
    """A claim's verdict by `RULE`, and its reason in a sentence that names the comparisons that did not hold."""
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
    return f"{f.what}, {f.place}, {_point(f)} {f.metric} {fixed(e.value, sign=True)} [{fixed(e.low, sign=True)}, {fixed(e.high, sign=True)}]{seeds}"


def _point(f: Finding) -> str:
    return f"{f.rounds} {f.prompt.replace('-', ' ')}{'s' if f.rounds > 1 else ''}".strip()


def claims_frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per comparison, in points: claim, claim_verdict, comparison, place, prompt, rounds, metric, expected, paper, difference, low, high, seeds, ..."""
    rows = []
    for claim in judged:
        for f in claim.findings:
            e = f.estimate or Estimate(np.nan, np.nan, np.nan)
            seeds = e.seeds or (np.nan,)
            rows.append(
                {
                    "claim": claim.claim.key,
                    "claim_verdict": claim.verdict,
                    "comparison": f.what,
                    "place": f.place,
                    "prompt": f.prompt,
                    "rounds": f.rounds,
                    "metric": f.metric,
                    "expected": f.expected,
                    "paper": f.paper,
                    "difference": e.value,
                    "ci_low": e.low,
                    "ci_high": e.high,
                    "seeds": len(e.seeds) or 1 if f.estimate else 0,
                    "seed_min": min(seeds),
                    "seed_max": max(seeds),
                    "seed_sd": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else np.nan,
                    "verdict": f.verdict,
                }
            )
    return pd.DataFrame(rows)


def claims_markdown(judged: Sequence[Judged]) -> str:
    """The report for people: rule, overview, then each claim with its reason and comparisons."""
    parts = ["# The claims", "Measured on the micro test sets; differences in points.", RULE, "## Overview"]
    rows = [
        [f"[{j.claim.key}](#{j.claim.key.lower()})", j.claim.statement, f"**{j.verdict}**", _tally(j)]
        for j in judged
    ]
    parts.append(markdown_table(["", "claim", "verdict", "comparisons that hold"], rows, text=(0, 1, 2)))
    for j in judged:
        parts += [f"## {j.claim.key}", j.claim.statement, f"**{j.verdict.capitalize()}.** {j.reason}"]
        parts += [text for text in (j.claim.note, j.remark) if text]
        header = [
            "difference",
            "where",
            "prompt",
            "metric",
            "claimed",
            "paper",
            "ours",
            "95 % interval",
            "seeds",
            "verdict",
        ]
        parts.append(markdown_table(header, [_row(f) for f in j.findings], text=(0, 1, 2, 3, 4, 9)))
    return "\n\n".join(parts) + "\n"


def _tally(judged: Judged) -> str:
    verdicts = [f.verdict for f in judged.findings if f.verdict != SHOWN]
    return f"{verdicts.count(HOLDS)} of {len(verdicts)}"


def _row(f: Finding) -> list[str]:
    head = [
        f.what,
        f.place,
        _point(f),
        f.metric,
        "" if f.expected == SHOWN else f.expected.replace(">0", "> 0").replace("<0", "< 0"),
        fixed(f.paper, sign=True),
    ]
    e = f.estimate
    if e is None:
        return [*head, "–", "–", "–", f.verdict]
    seeds = (
        f"{len(e.seeds)}: {fixed(min(e.seeds), sign=True)} … {fixed(max(e.seeds), sign=True)}"
        if e.seeds
        else "–"
    )
    return [
        *head,
        fixed(e.value, sign=True),
        f"{fixed(e.low, sign=True)} … {fixed(e.high, sign=True)}",
        seeds,
        f.verdict,
    ]


def write_claims(judged: Sequence[Judged], folder: Path) -> list[Path]:
    """Write `claims.md` and `claims.csv` into `folder`; give the paths."""
    return [
        write_text(claims_markdown(judged), Path(folder) / "claims.md"),
        write_csv(claims_frame(judged), Path(folder) / "claims.csv"),
    ]


def sampling_gains(bootstrap: Bootstrap) -> pd.DataFrame:
    """What uncertainty-aware sampling gains with one boundary point (Table 5, Figure 15): metric, place, paper, value, low, high (points)."""
    paper, rows = _paper_lookup(), []
    models = minus(medium("SUM"), medium("SUM w/o uncertainty sampling"))
    for metric in ("mIoU", "mBIoU"):
        for place in [name for task, names in dataset_order().items() for name in (*names, task)] + ["all"]:
            found = _measure(
                Comparison("", models, place, 1, metric, SHOWN, "boundary-point"), bootstrap, paper
            )
            e = found.estimate or Estimate(np.nan, np.nan, np.nan)
            rows.append(
                {
                    "metric": metric,
                    "place": place,
                    "paper": found.paper,
                    "value": e.value,
                    "low": e.low,
                    "high": e.high,
                }
            )
    return pd.DataFrame(rows)
