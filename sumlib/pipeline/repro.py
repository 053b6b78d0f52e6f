"""`dvc repro` of everything, several stages at a time: ``python -m sumlib.pipeline.repro --jobs 4``.

`dvc repro` runs one stage after another, each with several processes where it can use them. Many stages at a
time, with a process each, use the cores better: each stage that is out of date is handed to a `dvc repro
--single-item` of its own as soon as all that it waits for is done (DVC's documented way to run stages in
parallel). Results are the same bytes as one after another; killed, it goes on with what is not done. A stage
may say in dvc.yaml, under ``meta: {cost: 5}``, that it takes five times as long as others, so that it does
not come last.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import networkx
from dvc.repo import Repo
from tqdm import tqdm

from sumlib.base.lifetime import end_with_parent
from sumlib.base.parallel import processes
from sumlib.base.paths import ROOT


class StageError(RuntimeError):
    """A stage that failed; the message holds what it printed."""


def out_of_date(root: Path = ROOT) -> networkx.DiGraph:
    """The stages that `dvc repro` would look into: those whose inputs, parameters or outputs changed, and
    all that depend on them.

    An edge goes from a stage to one that waits for it.
    """
    with contextlib.chdir(root), Repo() as repo:  # DVC names stages as seen from the working directory
        graph, changed = repo.index.graph, set(repo.status())
        networkx.set_node_attributes(
            graph, {stage: (stage.meta or {}).get("cost", 1) for stage in graph}, "cost"
        )
        pipeline = networkx.relabel_nodes(graph, lambda stage: stage.addressing).reverse()
    below = set().union(*(networkx.descendants(pipeline, name) for name in changed))
    return pipeline.subgraph(changed | below).copy()


def run_all(
    waiting: networkx.DiGraph, run: Callable[[str], None], jobs: int, finished: Callable[[str, float], None]
) -> None:
    """``run`` every stage once those before it are done, ``jobs`` at a time, the costliest chain first;
    ``finished(name, seconds)`` after each.

    After a failure no further stage is started; those that run are waited for, and the first failure is
    raised.
    """
    waiting = waiting.copy()
    chain: dict[str, float] = {}  # cost of a stage and of those that wait for it, one after another
    for name in reversed(list(networkx.lexicographical_topological_sort(waiting))):
        chain[name] = waiting.nodes[name].get("cost", 1) + max(
            (chain[after] for after in waiting.successors(name)), default=0
        )
    running: dict = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting:
            ready = [name for name in waiting if not waiting.in_degree(name) and name not in running.values()]
            for name in sorted(ready, key=lambda name: (-chain[name], name))[: jobs - len(running)]:
                running[pool.submit(_timed, run, name)] = name
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(done)
                finished(name, done.result())
                waiting.remove_node(name)


def _timed(run: Callable[[str], None], name: str) -> float:
    start = time.monotonic()
    run(name)
    return time.monotonic() - start


def repro(name: str, jobs: int, root: Path = ROOT) -> None:
    """`dvc repro` of this stage alone, one of ``jobs`` at a time that share the cores; StageError with its
    output if it fails."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
    environment = os.environ | {"SUM_PROCESSES": str(max(1, processes() // jobs))}
    done = subprocess.run(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=partial(end_with_parent, os.getpid()),
    )
    if done.returncode:
        raise StageError(
            f"{done.stdout.strip()}\nerror: stage {name} failed (above is what it printed); "
            f"repeat it with `dvc repro {name}`"
        )


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sumlib.pipeline.repro", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="stages at a time (default: 1, plain `dvc repro`)"
    )
    jobs = parser.parse_args(arguments).jobs
    if jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {jobs}")
    if jobs == 1:
        return subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=root).returncode
    stages = out_of_date(root)
    try:
        with tqdm(total=len(stages), desc="stages", unit="stage", disable=not stages) as bar:

            def finished(name: str, seconds: float) -> None:
                bar.write(f"{name}: {seconds:.0f} s")
                bar.update()

            run_all(stages, lambda name: repro(name, jobs, root), jobs, finished)
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    left = out_of_date(root) if stages else stages
    if left:
        print(
            f"error: still out of date: {', '.join(left)}; something changed meanwhile, run it again",
            file=sys.stderr,
        )
        return 1
    print("Data and pipelines are up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
