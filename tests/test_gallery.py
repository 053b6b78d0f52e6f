"""results/README.md shows every table and figure, and nothing that is not there."""

import re

import pandas as pd
import pytest

from sumlib.base.paths import RESULTS
from sumlib.config.params import load_config
from sumlib.report import tables as report

PAGE = (RESULTS / "README.md").read_text(encoding="utf-8")
LINKED = {RESULTS / path for path in re.findall(r"\]\(([^)#]+)\)", PAGE)}


def test_every_link_leads_somewhere():
    missing = sorted(str(path.relative_to(RESULTS)) for path in LINKED if not path.is_file())
    assert not missing, f"results/README.md links to {', '.join(missing)}, which `dvc repro` does not make"


def test_every_table_and_figure_is_shown():
    made = {
        path
        for pattern in (
            "**/*.png",
            "tables/*.md",
            "quality/*.md",
            "refinement/*.md",
            "additional/*.md",
            "claims.md",
        )
        for path in RESULTS.glob(pattern)
    }
    forgotten = sorted(str(path.relative_to(RESULTS)) for path in made - LINKED)
    assert not forgotten, f"results/README.md does not show {', '.join(forgotten)}"


def test_every_figure_has_a_sentence():
    images, sentences = (
        re.findall(r"!\[[^\]]*\]\(([^)]+)\)", PAGE),
        re.findall(r"!\[[^\]]*\]\([^)]+\)\n(.*)", PAGE),
    )
    assert len(set(images)) == len(sentences) >= 41
    for sentence in sentences:
        assert re.match(r"\*[^*]+\.\* \S.{30,}", sentence), f"what is to be seen? {sentence!r}"


@pytest.mark.parametrize("number", range(1, 20))
def test_every_table_of_the_paper_has_its_files_and_every_model_its_run(number):
    folder = {3: "refinement", 19: "additional"}.get(number, "tables")
    for kind in ("md", "csv"):
        assert (RESULTS / folder / f"table-{number:02d}.{kind}").is_file(), (
            f"dvc repro makes no {folder}/table-{number:02d}.{kind}"
        )
    runs = {(run.model, run.train_set) for run in load_config("micro").runs.values()}
    runs |= {(report.ALSO[model], train_set) for model, train_set in runs if model in report.ALSO} | {
        ("Mask-refinement module", "FT-Small")
    }  # stage refine@small
    named = (
        report.paper_tables()
        .query("table == @number", local_dict={"number": str(number)})[["model", "train_set"]]
        .drop_duplicates()
    )
    missing = sorted(set(named.itertuples(index=False, name=None)) - runs)
    assert len(named) and not missing, f"table {number} needs runs of {missing} in params.yaml"


@pytest.mark.parametrize("number", report.TABLES)
def test_every_value_of_the_papers_tables_stands_beside_ours(number):
    table = pd.read_csv(RESULTS / "tables" / f"table-{number:02d}.csv")
    assert len(table) and table[["paper", "ours"]].notna().all().all()


@pytest.mark.parametrize("number", [1, 4, 5, *range(7, 11), *range(12, 48)])
def test_every_figure_of_the_paper_has_its_file(number):
    names = [path.stem for path in RESULTS.glob("*/figure-*.png")]
    ranges = [tuple(map(int, re.findall(r"\d+", name))) for name in names]
    assert any(found[0] <= number <= found[-1] for found in ranges), (
        f"dvc repro makes no figure-{number:02d}.png"
    )


def test_every_claim_of_the_paper_is_judged_and_read():
    text = (RESULTS / "claims.md").read_text(encoding="utf-8")
    for key in ("central", *(f"C{number}" for number in range(1, 11))):
        assert f"\n## {key}\n" in text, f"claims.md says nothing of {key}"
    assert text.count("*Reader:*") == 11 and "to be read again" not in text and "Not measured" not in text
