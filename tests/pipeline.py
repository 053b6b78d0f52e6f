"""Compares dvc.lock with the working tree: every reason why results in git may not belong to the code in
git."""

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path

import yaml
from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage


def md5(path: Path, ignored: list[str]) -> str:
    """DVC's hash of a file (MD5 of its bytes) or of a folder (MD5 of the sorted list of its files, ".dir"
    appended)."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    files = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
    kept = [
        name
        for name in files
        if not any(fnmatch(part, pattern) for part in name.parts for pattern in ignored)
    ]
    entries = [{"md5": md5(files[name], ignored), "relpath": name.as_posix()} for name in kept]
    return listing_md5(entries)


def listing_md5(entries: list[dict]) -> str:
    """DVC's hash of a folder with these files."""
    entries = sorted(entries, key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def read_lock(root: Path) -> dict:
    """Stages of dvc.lock by name."""
    path = root / "dvc.lock"
    assert path.is_file(), "dvc.lock is missing: run `make repro` and commit dvc.lock with results/"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]


def read_stages(root: Path) -> dict[str, PipelineStage]:
    """Stages of dvc.yaml by name, templates resolved; also fails where dvc.yaml or params.yaml cannot be
    read."""
    try:
        stages = Repo(str(root)).index.stages
    except DvcException as error:
        raise AssertionError(f"DVC cannot read the pipeline: {error}") from error
    return {stage.name: stage for stage in stages if isinstance(stage, PipelineStage)}


def stale(root: Path, code: dict[str, str] | None = None) -> list[str]:
    """One line for each reason why dvc.lock does not belong to the working tree; empty if it does.

    `code` are the code files that stage `code` would write, path relative to `root` -> text: they are looked
    at in place of that stage's inputs, which change with every word.
    """
    code = code or {}
    lock, stages = read_lock(root), read_stages(root)
    ignored = [
        line for line in (root / ".dvcignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    reasons = [f"{name} is in dvc.lock but not in dvc.yaml" for name in lock.keys() - stages.keys()]
    reasons += [f"{name} has never been run" for name in stages.keys() - lock.keys()]
    made = {out["path"]: out["md5"] for entry in lock.values() for out in entry.get("outs", [])}
    for name in sorted(lock.keys() & stages.keys()):
        problems = _definition(stages[name], lock[name])
        if code and name == "code":
            problems += _code(lock[name], code)
        else:
            problems += _inputs(root, lock[name], made, ignored, code)
        problems += _results(root, lock[name], stages[name], ignored)
        reasons += [f"{name}: {problem}" for problem in problems]
    return sorted(reasons) + _data(root, ignored)


def _definition(stage: PipelineStage, entry: dict) -> list[str]:
    """Differences of command, dependencies, outputs and parameter values."""
    problems = [] if stage.cmd == entry["cmd"] else ["its command has changed"]
    params = {}
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            params[dep.def_path] = dep.read_params()
    files = {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)}
    for word, now, then in (
        ("dependency", files, {dep["path"] for dep in entry.get("deps", [])}),
        ("output", {out.def_path for out in stage.outs}, {out["path"] for out in entry.get("outs", [])}),
    ):
        problems += [f"{word} {path} is in only one of dvc.yaml and dvc.lock" for path in sorted(now ^ then)]
    for file in params.keys() | entry.get("params", {}).keys():
        now, then = params.get(file, {}), entry.get("params", {}).get(file, {})
        problems += [
            f"parameter {key} has changed"
            for key in sorted(now.keys() | then.keys())
            if now.get(key) != then.get(key)
        ]
    return problems


def _code(entry: dict, code: dict[str, str]) -> list[str]:
    """Whether the folder of code files is the one that was written."""
    (out,) = entry["outs"]
    files = [
        {
            "md5": hashlib.md5(text.encode()).hexdigest(),
            "relpath": Path(path).relative_to(out["path"]).as_posix(),
        }
        for path, text in code.items()
    ]
    return [] if listing_md5(files) == out["md5"] else ["the code has changed"]


def _inputs(
    root: Path, entry: dict, made: dict[str, str], ignored: list[str], code: dict[str, str]
) -> list[str]:
    """Inputs that are not what the stage has read: files in git, the data, outputs of other stages."""
    problems = []
    for dep in entry.get("deps", []):
        path = Path(dep["path"])
        inside = [
            {"md5": made[out], "relpath": Path(out).relative_to(path).as_posix()}
            for out in made
            if path in Path(out).parents
        ]
        if dep["path"] in code:
            now = hashlib.md5(code[dep["path"]].encode()).hexdigest()
        elif dep["path"] in made:
            now = made[dep["path"]]
        elif inside:  # a folder of outputs
            now = listing_md5(inside)
        else:
            source = root / Path("sample", *path.parts[1:]) if path.parts[0] == "data" else root / path
            now = md5(source, ignored) if source.exists() else "missing"
        if now != dep["md5"]:
            problems.append(f"input {dep['path']} is not the one it was run with")
    return problems


def _results(root: Path, entry: dict, stage: PipelineStage, ignored: list[str]) -> list[str]:
    """Outputs kept in git (`cache: false`) that are missing or not what the stage has written."""
    kept = {out.def_path for out in stage.outs if not out.use_cache}
    problems = []
    for out in entry.get("outs", []):
        path = root / out["path"]
        if out["path"] in kept and (not path.exists() or md5(path, ignored) != out["md5"]):
            problems.append(f"{out['path']} is missing or not what it has written")
    return problems


def _data(root: Path, ignored: list[str]) -> list[str]:
    """data.dvc must import what lies in sample/, and stay unfrozen for a fresh clone without network."""
    if not (root / "data.dvc").is_file():
        return ["data.dvc is missing: `dvc import-url sample data && dvc unfreeze data.dvc`"]
    entry = yaml.safe_load((root / "data.dvc").read_text(encoding="utf-8"))
    now = md5(root / "sample", ignored) if (root / "sample").is_dir() else "missing"
    same = [item["md5"] == now for item in (*entry["deps"], *entry["outs"])]
    frozen = ["data.dvc is frozen: `dvc unfreeze data.dvc`"] if entry.get("frozen") else []
    return frozen + ([] if all(same) else ["data.dvc does not belong to sample/"])
