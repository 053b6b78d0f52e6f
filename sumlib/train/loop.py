"""A trainer for any step function: schedule, clipping, checkpoints to resume from, a log.

It knows nothing of SUM: it is given a module to save, an optimiser, and a step that makes gradients.
Fine-tuning, the refiner, its variants and the pre-training of the micro SAM are all trained here.
"""

import hashlib
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from sumlib.base.files import whole
from sumlib.base.parallel import average, average_gradients, processes, together

Step = Callable[[torch.Generator, int], dict[str, float]]
"""Draws data with the generator, computes a loss and calls ``backward``; returns numbers to log.

The second argument is the number of the share: a step may be computed in several shares, whose gradients and
numbers are averaged.
"""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine down to nothing; factors of each group's learning rate."""

    iterations: int
    warmup: float = 0
    cosine: bool = True

    def __call__(self, step: int) -> float:
        """Factor for the 0-based ``step``."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        return warm * (0.5 * (1 + math.cos(math.pi * step / self.iterations)) if self.cosine else 1.0)


@dataclass(frozen=True)
class Plan:
    """How long and how fast a model is trained."""

    schedule: Schedule
    """Or anything with its ``iterations`` that gives a factor of the learning rates for a step."""
    seed: int = 0
    clip: float = 0.0
    """Largest norm of the gradient, 0 for none."""
    shares: int = 1
    """Parts that a step is computed in; their gradients and numbers are averaged."""
    every: int = 100
    """Steps between two checkpoints, and between two checks."""
    title: str = ""
    progress: bool = True
    """Whether a bar is shown, and said that a training resumes."""


class Check:
    """What a training does every ``Plan.every`` steps, and what of it must be saved to resume."""

    def __call__(self, step: int, rows: list[dict]) -> None:
        """After ``step`` steps, with the ``rows`` of the log since the last check.

        Called before the first step (0) of a training that does not resume, every `Plan.every` steps and
        after the last one.
        """
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Tensors, numbers, texts and containers of them."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """The counterpart of `state_dict`."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a killed training goes on from."""

    path: Path | None = None
    """None: it can not."""
    fingerprint: str = ""
    """`fingerprint` of all that the training depends on; a checkpoint with another one is not used."""
    keep: bool = False
    """Whether the last state stays there at the end, so that a training that is done is not done again."""


NO_CHECKPOINT = Checkpoint()


def fingerprint(*parts: object) -> str:
    """A short hash of what a training depends on: values (by their JSON or repr) and files (by their bytes).

    Among the parts should be the code (`sumlib.base.code.code_hash`) and the content of the data.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                for block in iter(lambda: file.read(2**20), b""):
                    digest.update(block)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=repr).encode())
    return digest.hexdigest()[:16]


def fit(
    step: Step,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    plan: Plan,
    *,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    before: Callable[[int], None] | None = None,
    check: Check | None = None,
) -> pd.DataFrame:
    """Run ``plan.schedule.iterations`` steps; returns the log, one row a step.

    The randomness of share w in step k comes from a generator seeded with (``plan.seed``, k, w) alone, so a
    run that was killed and resumed from ``checkpoint`` (written every ``plan.every`` steps, removed at the
    end) gives the same result. A checkpoint with another fingerprint is ignored, with a message. ``before``
    is called once at the start of a step, with its 0-based number.

    On a CPU each of several shares has a process of its own where `parallel.processes` allows that many; else
    they follow each other in this one. With one or two shares both give the same bits. A ``check`` is then
    called in the first process.

    Raises FloatingPointError if a gradient is not finite.
    """
    workers = plan.shares if processes() >= plan.shares else 1
    job = _Job(step, model, optimiser, plan, checkpoint, before, check, workers)
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
    plan: Plan
    checkpoint: Checkpoint
    before: Callable[[int], None] | None
    check: Check | None
    workers: int

    def run_and_save(self, rank: int, end: Path) -> None:
        log = self.run(rank)
        if rank == 0:
            torch.save({"model": self.model.state_dict(), "log": log}, end)

    def run(self, rank: int) -> list[dict]:
        """All steps, by worker ``rank``."""
        plan, optimiser, path = self.plan, self.optimiser, self.checkpoint.path
        iterations = plan.schedule.iterations
        peak = [group["lr"] for group in optimiser.param_groups]
        log = self._resume(rank)
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
        hidden = {} if plan.progress and rank == 0 else {"disable": True}  # else TQDM_DISABLE decides
        bar = tqdm(range(len(log), iterations), initial=len(log), total=iterations, desc=plan.title, **hidden)
        for k in bar:
            for group, lr in zip(optimiser.param_groups, peak):
                group["lr"] = lr * plan.schedule(k)
            if self.before:
                self.before(k)
            row = self._gradients(k, range(rank, plan.shares, self.workers), parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, plan.clip or math.inf)
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"{plan.title}: the gradient of step {k} is not finite; "
                    "lower the learning rate in params.yaml"
                )
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            log.append({"step": k + 1, **row, "gradient_norm": norm.item()})
            if rank == 0:
                self._pause(k + 1, log)
        if rank == 0 and path and not self.checkpoint.keep:
            path.unlink(missing_ok=True)
        return log

    def _pause(self, done: int, log: list[dict]) -> None:
        """What comes between two steps: the check, then the checkpoint."""
        every, last = self.plan.every, done == self.plan.schedule.iterations
        if done % every and not last:
            return
        if self.check:
            self.check(done, log[(done - 1) // every * every :])
        if self.checkpoint.path and (self.checkpoint.keep or not last):
            save_checkpoint(
                self.checkpoint.path,
                self.checkpoint.fingerprint,
                done,
                model=self.model.state_dict(),
                optimiser=self.optimiser.state_dict(),
                check=self.check.state_dict() if self.check else {},
                log=log,
            )

    def _resume(self, rank: int) -> list[dict]:
        """The log so far; the states are loaded."""
        state = load_checkpoint(
            self.checkpoint.path,
            self.checkpoint.fingerprint,
            loud=self.plan.progress and rank == 0,
            warn=rank == 0,
        )
        if state:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        if self.check and rank == 0:
            if state:
                self.check.load_state_dict(state["check"])
            else:
                self.check(0, [])
        return state["log"] if state else []

    def _gradients(self, k: int, mine: range, parameters: list[nn.Parameter]) -> dict[str, float]:
        """Compute this worker's shares ``mine`` of step ``k``; the averaged numbers of all shares.

        The gradients, averaged over all shares, are left in ``parameters``.
        """
        if self.plan.shares == 1:
            return self.step(self._generator(k, 0), 0)
        total: list[torch.Tensor] = []
        for share in mine:
            row = self.step(self._generator(k, share), share)
            values = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            values.append(torch.tensor(list(row.values()), dtype=torch.float64))
            total = [a.add_(b) for a, b in zip(total, values)] if total else values
            # A share's gradient is added as a whole, as between processes: the same bits.
            self.optimiser.zero_grad(set_to_none=True)
        *gradients, numbers = (value.div_(len(mine)) for value in total)
        for p, gradient in zip(parameters, gradients):
            p.grad = gradient
        average([numbers])
        average_gradients(parameters)
        return dict(zip(row, numbers.tolist()))

    def _generator(self, k: int, share: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.plan.seed * 1_000_003 + k) * self.plan.shares + share)


def save_checkpoint(path: Path, fingerprint: str, step: int, **state) -> None:
    """Write the state of a training after ``step``, whole or not at all.

    ``state`` is of tensors, numbers, texts and containers of them.
    """
    with whole(path) as temporary:
        torch.save({"fingerprint": fingerprint, "step": step, **state}, temporary)


def load_checkpoint(
    path: Path | None, fingerprint: str, *, loud: bool = True, warn: bool = True
) -> dict | None:
    """The saved state; None if there is none, it can not be read or its ``fingerprint`` differs.

    ``loud``: it is said if a training resumes; ``warn``: it is said if a checkpoint is not used, and why.
    """
    if path is None or not path.exists():
        return None
    why, state = "", {}
    try:
        state = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        why = f"can not be read ({type(error).__name__})"
    if not why and (not isinstance(state, dict) or state.get("fingerprint") != fingerprint):
        why = "is of another configuration, code or data"
    if why:
        if warn:
            print(f"{path.name}: the checkpoint {why}; starting anew")
        return None
    if loud:
        print(f"{path.name}: resuming after step {state['step']}")
    return state
