"""The judged claims for people and for files, with a reader's words on each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from sumlib.base.files import write_text
from sumlib.report.claims import FAILS, HOLDS, RULE, SHOWN, UNDECIDED, Estimate, Finding, Judged, point_name
from sumlib.report.text import fixed, markdown_table, write_csv


def read_words(path: Path) -> dict[str, tuple[str, str]]:
    """Hand-written comments on the claims: {key: (the verdict that they were written for, the words)}.

    ``path`` is Markdown with a section a claim, headed `## <key>: <verdict>`. Raises FileNotFoundError, and
    ValueError for a section that is headed otherwise, stands twice or is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the comments on the claims are missing; restore them with `git checkout`"
        )
    words: dict[str, tuple[str, str]] = {}
    for section in re.split(r"(?m)^## ", path.read_text(encoding="utf-8"))[1:]:
        heading, _, text = section.partition("\n")
        key, _, verdict = heading.strip().partition(": ")
        if verdict not in (HOLDS, FAILS, UNDECIDED) or key in words or not text.strip():
            raise ValueError(
                f"{path}: section {heading.strip()!r}: write `## <key>: <verdict>` once for each claim, "
                "with the verdict "
                f"{HOLDS!r}, {FAILS!r} or {UNDECIDED!r}, and a comment below it"
            )
        words[key] = verdict, " ".join(text.split())
    return words


def add_words(judged: Sequence[Judged], words: Mapping[str, tuple[str, str]]) -> list[Judged]:
    """Attach hand-written comments: key -> (verdict the comment was written for, comment).

    Where the verdict has changed since, the report says so. Raises ValueError for a claim without a comment.
    """
    told = []
    for claim in judged:
        if claim.claim.key not in words:
            raise ValueError(f"no comment on claim {claim.claim.key}: write one into results/reading.md")
        verdict, text = words[claim.claim.key]
        stale = f' (Written when the verdict was "{verdict}": to be read again.)'
        told.append(replace(claim, remark=f"*Reader:* {text}{'' if verdict == claim.verdict else stale}"))
    return told


def claims_frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per comparison, in points.

    Columns: claim, claim_verdict, comparison, place, prompt, rounds, metric, expected, paper, difference,
    ci_low, ci_high, seeds (number of trainings, of the model with the fewest), seed_min, seed_max, seed_sd,
    verdict.
    """
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
                    "seeds": e.trainings if f.estimate else 0,
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
    header = ["difference", "where", "prompt", "metric", "claimed", "paper", "ours", "95 % interval", "seeds"]
    for j in judged:
        parts += [f"## {j.claim.key}", j.claim.statement, f"**{j.verdict.capitalize()}.** {j.reason}"]
        parts += [text for text in (j.claim.note, j.remark) if text]
        rows = [_row(finding) for finding in j.findings]
        parts.append(markdown_table([*header, "verdict"], rows, text=(0, 1, 2, 3, 4, 9)))
    return "\n\n".join(parts) + "\n"


def _tally(judged: Judged) -> str:
    verdicts = [f.verdict for f in judged.findings if f.verdict != SHOWN]
    return f"{verdicts.count(HOLDS)} of {len(verdicts)}"


def _row(f: Finding) -> list[str]:
    head = [
        f.what,
        f.place,
        point_name(f),
        f.metric,
        "" if f.expected == SHOWN else f.expected.replace(">0", "> 0").replace("<0", "< 0"),
        fixed(f.paper, sign=True),
    ]
    e = f.estimate
    if e is None:
        return [*head, "–", "–", "–", f.verdict]
    spread = f"{fixed(e.low, sign=True)} … {fixed(e.high, sign=True)}"
    return [*head, fixed(e.value, sign=True), spread, _seeds(e), f.verdict]


def _seeds(e: Estimate) -> str:
    """Number of trainings, and the smallest and largest value among them: "3: +0.1 … +0.4"; "1 against 3:
    ..." where one side has one training."""
    if not e.seeds:
        return "–"
    number = str(len(e.seeds)) if e.trainings == len(e.seeds) else f"{e.trainings} against {len(e.seeds)}"
    return f"{number}: {fixed(min(e.seeds), sign=True)} … {fixed(max(e.seeds), sign=True)}"


def write_claims(judged: Sequence[Judged], folder: Path) -> list[Path]:
    """Write `claims.md` and `claims.csv` into `folder`; give the paths."""
    path = Path(folder) / "claims.md"
    write_text(path, claims_markdown(judged))
    return [path, write_csv(claims_frame(judged), Path(folder) / "claims.csv")]
