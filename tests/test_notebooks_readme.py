"""notebooks/README.md names every notebook with its question, and shows pictures that exist."""

import json
import re

import pytest

from sumlib.base.paths import NOTEBOOKS

TEXT = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_is_listed_with_its_own_question(name):
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| [{name}](")]
    title = "".join(json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"][0]["source"])
    question = re.search(r"\*\*(.+?)\*\*", title, re.DOTALL)[1].replace("\n", " ")
    assert question in row


def test_pictures_and_tables_exist():
    paths = re.findall(r'(?:src="|\]\()(\.\./results/[^")]+\.(?:png|md))', TEXT)
    assert len(paths) > 8
    missing = [path for path in paths if not (NOTEBOOKS / path).is_file()]
    assert not missing
