"""A trainer for any step function: schedule, clipping, checkpoints to resume from, a log.

It knows nothing of SUM: it is given a module to save, an optimiser, and a step that makes gradients.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from sumlib.base.parallel import average, average_gradients, processes, together

Step = Callable[[torch.Generator, int], dict[str, float]]
"""Computes a loss on data of its own, drawn with the generator, and calls ``backward``; returns numbers to log.

The second argument is the number of the share: a step may be computed in several shares, whose gradients and
numbers are averaged.
"""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine down to nothing; factors of each group's learning rate."""

    iterations: int
    warmup: int = 0
    cosine: bool = True

    def __call__(self, step: int) -> float:
        """Factor for the 0-based ``step``."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        return warm * (0.5 * (1 + math.cos(math.pi * step / self.iterations)) if self.cosine else 1.0)


def fingerprint(*parts: object) -> str:
    """A short hash of what a training depends on: values (by their JSON or repr) and files (by their bytes)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            digest.update(part.read_bytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=repr).encode())
    return digest.hexdigest()[:16]


def fit(
    step: Step,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    seed: int,
    clip: float = 0.0,
    resume: Path | None = None,
    mark: str = "",
    every: int = 100,
    title: str = "",
    shares: int = 1,
    before: Callable[[], None] | None = None,
) -> pd.DataFrame:
    """Run ``schedule.iterations`` steps; returns the log, one row a step.

    The randomness of share w in step k comes from a generator seeded with (``seed``, k, w) alone, so a run
    that was killed and resumed from ``resume`` (written every ``every`` steps, removed at the end) gives the
    same result. A checkpoint with another ``mark`` is not used, and said so. ``clip`` is the largest gradient
    norm, 0 for none. ``before`` is called once at the start of a step.

    The gradients and numbers of a step's ``shares`` are averaged. On a CPU each share has a process of its
    own where `parallel.processes` allows that many; else they follow each other in this one. With one or two
    shares both give the same bits.
    """
    workers = shares if processes() >= shares else 1
    job = _Job(
        step, model, optimiser, schedule, seed, clip, resume, mark, every, title, shares, workers, before
    )
    if workers == 1:
        return pd.DataFrame(job.run(0))
    with TemporaryDirectory(prefix="sum-") as folder:
        together(job.run_and_save, workers, Path(folder) / "end.pt")
        end = torch.load(Path(folder) / "end.pt", weights_only=True)
    model.load_state_dict(end["model"])
    return pd.DataFrame(end["log"])


@dataclass(frozen=True)
class _Job:
    """The arguments of `fit`, as every worker gets them."""

    step: Step
    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Schedule
    seed: int
    clip: float
    resume: Path | None
    mark: str
    every: int
    title: str
    shares: int
    workers: int
    before: Callable[[], None] | None

    def run_and_save(self, rank: int, end: Path) -> None:
        log = self.run(rank)
        if rank == 0:
            torch.save({"model": self.model.state_dict(), "log": log}, end)

    def run(self, rank: int) -> list[dict]:
        iterations, optimiser, resume = self.schedule.iterations, self.optimiser, self.resume
        peak = [group["lr"] for group in optimiser.param_groups]
        log = _resume(self.model, optimiser, resume, self.mark, loud=rank == 0)
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
        hidden = {"disable": True} if rank else {}  # what is not said is left to TQDM_DISABLE
        for k in tqdm(
            range(len(log), iterations), initial=len(log), total=iterations, desc=self.title, **hidden
        ):
            for group, lr in zip(optimiser.param_groups, peak):
                group["lr"] = lr * self.schedule(k)
            if self.before:
                self.before()
            row = self._gradients(k, range(rank, self.shares, self.workers), parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip or math.inf)
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"{self.title}: the gradient of step {k} is not finite; lower the learning rate in params.yaml"
                )
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            log.append({"step": k + 1, **row, "gradient_norm": norm.item()})
            if rank == 0 and resume and (k + 1) % self.every == 0 and k + 1 < iterations:
                save_checkpoint(
                    resume,
                    self.mark,
                    k + 1,
                    model=self.model.state_dict(),
                    optimiser=optimiser.state_dict(),
                    log=log,
                )
        if rank == 0 and resume:
            resume.unlink(missing_ok=True)
        return log

    def _gradients(self, k: int, mine: range, parameters: list[nn.Parameter]) -> dict[str, float]:
        """Leave in ``parameters`` the mean gradient over all shares of step ``k``, of which this worker computes ``mine``; the mean numbers."""
        if self.shares == 1:
            return self.step(self._generator(k, 0), 0)
        total: list[torch.Tensor] = []
        for share in mine:
            row = self.step(self._generator(k, share), share)
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            found.append(torch.tensor(list(row.values()), dtype=torch.float64))
            total = [a.add_(b) for a, b in zip(total, found)] if total else found
            self.optimiser.zero_grad(
                set_to_none=True
            )  # a share's gradient is added as a whole, as between processes: the same bits
        *gradients, numbers = (value.div_(len(mine)) for value in total)
        for p, gradient in zip(parameters, gradients):
            p.grad = gradient
        average([numbers])
        average_gradients(parameters)
        return dict(zip(row, numbers.tolist()))

    def _generator(self, k: int, share: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + k) * self.shares + share)


def _resume(
    model: nn.Module, optimiser: torch.optim.Optimizer, path: Path | None, mark: str, loud: bool
) -> list[dict]:
    state = load_checkpoint(path, mark, loud)
    if not state:
        return []
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["log"]


def save_checkpoint(path: Path, mark: str, step: int, **state) -> None:
    """Write the state of a training after ``step``, whole or not at all: tensors, numbers, texts and containers of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"mark": mark, "step": step, **state}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_checkpoint(path: Path | None, mark: str, loud: bool = True) -> dict | None:
    """What `save_checkpoint` wrote, to resume from; None where nothing is there, or something of another ``mark``, which is said if ``loud``."""
    if path is None or not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    fits = state["mark"] == mark
    if loud:
        print(
            f"{path.name}: "
            + (
                f"resuming after step {state['step']}"
                if fits
                else "a checkpoint of another configuration or data; starting anew"
            )
        )
    return state if fits else None
