"""One environment, three files: pyproject.toml, requirements.lock and environment.yml agree."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from sumlib.base.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def locked() -> dict[str, list[str]]:
    """Versions in the lock by package; a universal lock may hold several, for different platforms."""
    versions = {}
    for block in re.split(r"\n(?=\S)", LOCK.strip()):
        name, version = re.match(r"([\w.-]+)==([^\s;\\]+)", block).groups()
        assert "--hash=sha256:" in block, f"{name} has no hash"
        versions.setdefault(canonicalize_name(name), []).append(version)
    return versions


def test_lock_satisfies_every_dependency():
    versions = locked()
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        found = versions.get(canonicalize_name(wanted.name))
        assert found, f"{wanted.name} is not in requirements.lock; run `make lock`"
        assert all(wanted.specifier.contains(version) for version in found), (
            f"{text} against {found}; run `make lock`"
        )


def test_lock_has_no_address_of_a_package_host():
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|@ ", LOCK)


def test_conda_has_the_projects_python_and_the_lock():
    packages = [item for item in CONDA["dependencies"] if isinstance(item, str)]
    pip = [item["pip"] for item in CONDA["dependencies"] if isinstance(item, dict)]
    assert pip == [["-r requirements.lock"]]
    assert {re.split("[<>=!]", item)[0] for item in packages} == {"python", "pip"}
    python = next(item for item in packages if item.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])


def test_makefile_asks_for_the_projects_python():
    least = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"]).groups()
    assert f"sys.version_info < ({', '.join(least)})" in (ROOT / "Makefile").read_text(encoding="utf-8")
