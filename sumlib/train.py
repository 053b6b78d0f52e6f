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

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

Step = Callable[[torch.Generator], dict[str, float]]
"""Computes a loss on data of its own, drawn with the generator, and calls ``backward``; returns numbers to log."""


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
    step: Step, model: nn.Module, optimiser: torch.optim.Optimizer, schedule: Schedule, *, seed: int, clip: float = 0.0,
    resume: Path | None = None, mark: str = "", every: int = 100, title: str = "",
) -> pd.DataFrame:  # fmt: skip
    """Run ``schedule.iterations`` steps; returns the log, one row a step.

    The randomness of step k comes from a generator seeded with (``seed``, k) alone, so a run that was killed and resumed
    from ``resume`` (written every ``every`` steps, removed at the end) gives the same result. A checkpoint with another
    ``mark`` is not used, and said so. ``clip`` is the largest gradient norm, 0 for none.
    """
    peak = [group["lr"] for group in optimiser.param_groups]
    log = _resume(model, optimiser, resume, mark)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for k in tqdm(range(len(log), schedule.iterations), initial=len(log), total=schedule.iterations, desc=title):
        for group, lr in zip(optimiser.param_groups, peak):
            group["lr"] = lr * schedule(k)
        row = step(torch.Generator().manual_seed(seed * 1_000_003 + k))
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf)
        if not math.isfinite(norm):
            raise FloatingPointError(f"{title}: the gradient of step {k} is not finite; lower the learning rate in params.yaml")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        log.append({"step": k + 1, **row, "gradient_norm": norm.item()})
        if resume and (k + 1) % every == 0 and k + 1 < schedule.iterations:
            _save(model, optimiser, log, resume, mark)
    if resume:
        resume.unlink(missing_ok=True)
    return pd.DataFrame(log)


def _save(model: nn.Module, optimiser: torch.optim.Optimizer, log: list, path: Path, mark: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"mark": mark, "model": model.state_dict(), "optimiser": optimiser.state_dict(), "log": log}
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _resume(model: nn.Module, optimiser: torch.optim.Optimizer, path: Path | None, mark: str) -> list[dict]:
    if path is None or not path.exists():
        return []
    state = torch.load(path, weights_only=True)
    if state["mark"] != mark:
        print(f"{path.name}: a checkpoint of another configuration, data or code; starting anew")
        return []
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    print(f"{path.name}: resuming after step {len(state['log'])}")
    return state["log"]
