"""Verdicts follow from intervals and seeds by the stated rule; the report is complete and repeatable."""

import numpy as np
import pytest
from test_report import results

from sumlib.base.paths import RESULTS
from sumlib.report import claim_report
from sumlib.report.claim_list import list_claims
from sumlib.report.claims import (
    FAILS,
    HOLDS,
    RULE,
    SHOWN,
    UNDECIDED,
    Finding,
    conclude,
    decide,
    judge_claims,
    judge_refinement,
)
from sumlib.report.intervals import Bootstrap, Estimate
from sumlib.report.sampling import sampling_gains

RUNS = {
    "sam": ("SAM", "none", 0),
    "human-small": ("Human-annotation-only", "FT-Small", 0),
    "vanilla-small": ("Vanilla", "FT-Small", 0),
    "vanilla-medium": ("Vanilla", "FT-Medium", 0),
    "mask-refinement-medium": ("Mask Refinement", "FT-Medium", 0),
    "sum-small": ("SUM", "FT-Small", 0),
    "sum-medium": ("SUM", "FT-Medium", 0),
    "sum-medium-seed1": ("SUM", "FT-Medium", 1),
    "sum-large": ("SUM", "FT-Large", 0),
    "sum-no-task-prompt-medium": ("SUM w/o Task Prompt", "FT-Medium", 0),
    "sum-continuous-medium": ("SUM Continuous TP", "FT-Medium", 0),
    "sum-uniform-sampling-medium": ("SUM w/o uncertainty sampling", "FT-Medium", 0),
}


def refinement(gain=0.05) -> dict:
    masks = {"image": ["a", "a", "b", "c"], "sam_iou": [0.5, 0.6, 0.7, 0.8], "sam_biou": [0.3, 0.3, 0.4, 0.4]}
    masks |= {
        key.replace("sam", "refined"): [value + gain for value in masks[key]]
        for key in ("sam_iou", "sam_biou")
    }
    pixels = {
        "threshold": 0.6,
        "certain": [100, 100],
        "certain_correct": [98, 98],
        "uncertain": [10, 10],
        "uncertain_correct": [3, 3],
    }
    return {"levels": {"salient": masks, "part": masks}, "certainty": pixels}


@pytest.fixture(scope="module")
def judged():
    bootstrap = Bootstrap(results(RUNS, rounds=(1, 3, 6)), np.random.default_rng(0), 300)
    return judge_claims(bootstrap, {"refine-small": refinement()}, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("estimate", "expected", "verdict"),
    [
        (Estimate(2, 1, 3), ">0", HOLDS),
        (Estimate(2, -0.1, 4), ">0", UNDECIDED),
        (Estimate(-2, -3, -1), ">0", FAILS),
        (Estimate(-2, -3, -1, (-2.5, -1.5)), ">0", FAILS),
        (Estimate(-2, -3, -1, (-4.5, 0.5)), ">0", UNDECIDED),
        (Estimate(2, 1, 3, (4.5, -0.5)), "<0", UNDECIDED),
        (Estimate(2, 1, 3), "<0", FAILS),
        (Estimate(-2, -3, -1), "<0", HOLDS),
        (Estimate(-2, -3, -1, (-2.0, 0.2)), "<0", UNDECIDED),
        (Estimate(0.1, -0.4, 0.6), "none", HOLDS),
        (Estimate(0.9, 0.4, 1.4), "none", UNDECIDED),
        (Estimate(2, 1.2, 3), "none", FAILS),
        (Estimate(-2, -3, -1.2), "none", FAILS),
        (Estimate(2, 1.2, 3, (3.5, 0.5)), "none", UNDECIDED),
        (Estimate(0.1, -0.4, 0.6, (0.1, 1.3)), "none", UNDECIDED),
        (Estimate(0, 0, 0), ">0", UNDECIDED),
        (Estimate(2, 1, 3), SHOWN, SHOWN),
    ],
)
def test_rule(estimate, expected, verdict):
    assert decide(estimate, expected) == verdict


def test_unknown_expectation_is_an_error():
    with pytest.raises(ValueError, match="choose"):
        decide(Estimate(0, 0, 0), "up")


def test_claim_verdict_is_its_weakest_comparison():
    known = Estimate(1.0, 0.5, 1.5)

    def finding(verdict, estimate=known, why=""):
        return Finding("A − B", "part", "point", 3, "mIoU", ">0", np.nan, estimate, verdict, why)

    assert conclude([finding(HOLDS), finding(SHOWN)]) == (HOLDS, "1 of 1 judged comparisons hold.")
    verdict, reason = conclude(
        [finding(HOLDS), finding(UNDECIDED), finding(FAILS, Estimate(-1.0, -1.5, -0.5))]
    )
    assert (
        verdict == FAILS
        and "On the other side: A − B, part, 3 points mIoU -1.0 [-1.5, -0.5]." in reason
        and "Not decided: A − B" in reason
    )
    verdict, reason = conclude([finding(HOLDS), finding(UNDECIDED, None, "sum-large was not evaluated")])
    assert verdict == UNDECIDED and "Not measured: sum-large was not evaluated." in reason


def test_known_differences_give_known_verdicts(judged):
    """Every fine-tuned model is 10 points above SAM and equal to the others: some claims must hold, others
    must not.
    """
    verdicts = {claim.claim.key: claim for claim in judged}
    assert list(verdicts) == ["central", *(f"C{n}" for n in range(1, 11))]
    assert verdicts["C3"].verdict == HOLDS and all(f.estimate.value > 3 for f in verdicts["C3"].findings)
    assert (
        verdicts["C1"].verdict == FAILS and verdicts["central"].verdict == FAILS
    )  # Human-only does not forget here
    assert verdicts["C4"].verdict == HOLDS
    assert verdicts["C8"].findings[0].verdict == HOLDS and verdicts["C8"].verdict != HOLDS
    assert len(verdicts["C3"].findings[0].estimate.seeds) == 2


def test_contrast_weights_mean_what_they_say(judged):
    for claim in list_claims():
        for comparison in claim.comparisons:
            assert sum(comparison.models.values()) == pytest.approx(0)
            if not isinstance(comparison.where, str):
                assert sum(comparison.where.values()) == pytest.approx(0) and len(comparison.where) == 14
    c7 = next(claim for claim in judged if claim.claim.key == "C7")
    assert [round(f.paper, 1) for f in c7.findings[:2]] == [4.1, 4.5]
    c8 = next(claim for claim in judged if claim.claim.key == "C8")
    assert [round(f.paper, 1) for f in c8.findings] == [3.8, 0.6, 1.7]


def test_refinement_by_hand():
    findings = judge_refinement("refine-small", refinement(0.05), np.random.default_rng(0))
    overall = [f for f in findings if "mean over levels" in f.what]
    assert [f.estimate.value for f in overall] == pytest.approx([5, 5]) and {f.verdict for f in overall} == {
        HOLDS
    }
    assert findings[-1].estimate.value == pytest.approx(98 - 30) and findings[-1].verdict == HOLDS
    assert judge_refinement("x", refinement(-0.05), np.random.default_rng(0))[2].verdict == FAILS
    with pytest.raises(ValueError, match="x.json lacks the key 'certainty'"):
        judge_refinement("x", {"levels": refinement()["levels"]}, np.random.default_rng(0))


def test_missing_runs_leave_claims_undecided():
    frame = results({"sam": RUNS["sam"], "sum-medium": RUNS["sum-medium"]}, images=2, masks=1, rounds=(1,))
    judged = judge_claims(Bootstrap(frame, np.random.default_rng(0), 50), generator=np.random.default_rng(0))
    assert {claim.verdict for claim in judged} == {UNDECIDED}
    assert "Human-annotation-only FT-Small was not evaluated" in judged[0].reason
    assert "nan" not in claim_report.claims_markdown(judged)


def test_report_is_complete_and_repeatable(judged, tmp_path):
    told = claim_report.add_words(
        judged, {claim.claim.key: (HOLDS, f"Words on {claim.claim.key}.") for claim in judged}
    )
    first = [path.read_bytes() for path in claim_report.write_claims(told, tmp_path / "a")]
    assert first == [path.read_bytes() for path in claim_report.write_claims(told, tmp_path / "b")]
    text = first[0].decode()
    assert all(f"## {claim.claim.key}\n" in text and claim.claim.statement in text for claim in judged)
    assert " ".join(RULE.split()) in " ".join(text.split()) and "nan" not in text
    assert text.count("to be read again") == sum(claim.verdict != HOLDS for claim in judged) > 0
    assert all(f"*Reader:* Words on {claim.claim.key}." in text for claim in judged)
    with pytest.raises(ValueError, match="no comment on claim central"):
        claim_report.add_words(judged, {})
    assert len(first[1].decode().splitlines()) == 1 + sum(len(claim.findings) for claim in judged)


def test_sampling_gains_cover_every_set():
    frame = results(
        {
            "sum-medium": RUNS["sum-medium"],
            "sum-uniform-sampling-medium": RUNS["sum-uniform-sampling-medium"],
        },
        images=2,
        rounds=(1,),
    )
    gains = sampling_gains(Bootstrap(frame, np.random.default_rng(0), 50))
    assert len(gains) == 2 * (14 + 4) and gains.notna().all(axis=None)
    assert gains.set_index(["metric", "place"]).loc[("mIoU", "DIS-VD"), "paper"] == pytest.approx(4.1)


def test_a_readers_words_are_read_from_their_file(tmp_path):
    words = claim_report.read_words(RESULTS / "reading.md")
    assert list(words) == [claim.key for claim in list_claims()]
    assert all(verdict in (HOLDS, FAILS, UNDECIDED) and len(text) > 40 for verdict, text in words.values())
    path = tmp_path / "reading.md"
    path.write_text("# Title\n\n## C1: holds\n\nTwo\nlines.\n\n## C2: undecided\n\nMore.\n")
    assert claim_report.read_words(path) == {"C1": (HOLDS, "Two lines."), "C2": (UNDECIDED, "More.")}


@pytest.mark.parametrize(
    "text", ["## C1: maybe\n\nA.", "## C1: holds\n", "## C1: holds\n\nA.\n## C1: holds\n\nB.", "## C1\n\nA."]
)
def test_broken_words_name_file_section_and_remedy(text, tmp_path):
    path = tmp_path / "reading.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"reading\.md: section 'C1.*write `## <key>: <verdict>`"):
        claim_report.read_words(path)
    with pytest.raises(FileNotFoundError, match="git checkout"):
        claim_report.read_words(tmp_path / "none.md")
