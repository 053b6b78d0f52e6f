"""results/README.md shows every table and every figure, and nothing that is not there."""

import re

from sumlib.paths import RESULTS

PAGE = (RESULTS / "README.md").read_text(encoding="utf-8")
LINKED = {RESULTS / path for path in re.findall(r"\]\(([^)#]+)\)", PAGE)}


def test_every_link_leads_somewhere():
    missing = sorted(str(path.relative_to(RESULTS)) for path in LINKED if not path.is_file())
    assert not missing, f"results/README.md links to {', '.join(missing)}, which `dvc repro` does not make"


def test_every_table_and_figure_is_shown():
    made = {path for pattern in ("**/*.png", "tables/*.md", "quality/*.md", "refinement/*.md", "additional/*.md", "claims.md") for path in RESULTS.glob(pattern)}
    forgotten = sorted(str(path.relative_to(RESULTS)) for path in made - LINKED)
    assert not forgotten, f"results/README.md does not show {', '.join(forgotten)}"


def test_every_figure_has_a_sentence():
    for path in re.findall(r"!\[[^\]]*\]\([^)]+\)\n(.*)", PAGE):
        assert re.match(r"\*[^*]+\.\* \S.{30,}", path), f"what is to be seen? {path!r}"
