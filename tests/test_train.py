"""The trainer: a killed run ends as if it had not been killed, schedules by hand, clear failures."""

import hashlib
import math

import pandas as pd
import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from sumlib.train.loop import Check, Checkpoint, Plan, Schedule, fingerprint, fit

SCHEDULE = Schedule(iterations=7, warmup=2)


class Killed(Exception):
    """The process is gone."""


def train(
    resume=None, *, made="m", killed_at=None, seed=3, scale=1.0, **options
) -> tuple[pd.DataFrame, nn.Linear]:
    """Fit a line to noise; ``killed_at`` is the call (from 1) in whose middle the run dies."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 0.5)
    nn.init.zeros_(model.bias)
    optimiser = torch.optim.AdamW(
        [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}]
    )
    calls = []

    def step(generator: torch.Generator, worker: int) -> dict[str, float]:
        calls.append(1)
        x = torch.rand(4, 2, generator=generator)
        loss = scale * ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
        loss.backward()
        if len(calls) == killed_at:
            raise Killed
        return {"loss": loss.item()}

    log = fit(
        step,
        model,
        optimiser,
        Plan(SCHEDULE, seed=seed, every=2, title="line"),
        checkpoint=Checkpoint(resume, made),
        **options,
    )
    return log, model


def same(a: tuple, b: tuple) -> bool:
    return a[0].equals(b[0]) and all(
        torch.equal(x, y) for x, y in zip(a[1].parameters(), b[1].parameters(), strict=True)
    )


@pytest.mark.parametrize("killed_at", [2, 3, 6, 7])
def test_a_killed_run_resumes_to_the_same_result(tmp_path, capsys, killed_at):
    path = tmp_path / "new" / "line.pt"
    with pytest.raises(Killed):
        train(path, killed_at=killed_at)
    assert path.exists() == (killed_at > 2)  # written after every second step
    capsys.readouterr()
    resumed = train(path)
    done = (killed_at - 1) // 2 * 2
    assert capsys.readouterr().out == (f"line.pt: resuming after step {done}\n" if done else "")
    assert same(resumed, train()) and list(resumed[0]["step"]) == list(range(1, 8))
    assert list(path.parent.glob("*")) == [] if done else not path.exists()


def test_a_checkpoint_of_something_else_is_not_used_and_said_so(tmp_path, capsys):
    path = tmp_path / "line.pt"
    with pytest.raises(Killed):
        train(path, killed_at=6, made="other", seed=9)
    fresh = train(path)
    assert (
        capsys.readouterr().out
        == "line.pt: the checkpoint is of another configuration, code or data; starting anew\n"
    )
    assert same(fresh, train())


class Memory(Check):
    """Remembers the mean loss between checks."""

    def __init__(self):
        self.seen: list[tuple[int, float | None]] = []

    def __call__(self, step, rows):
        self.seen.append((step, sum(row["loss"] for row in rows) / len(rows) if rows else None))

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@pytest.mark.parametrize("killed_at", [2, 6])
def test_checks_come_at_the_start_every_few_steps_and_at_the_end_also_of_a_killed_run(tmp_path, killed_at):
    whole, again = Memory(), Memory()
    log, _ = train(check=whole)
    assert [step for step, _ in whole.seen] == [0, 2, 4, 6, 7]
    assert whole.seen[3][1] == log["loss"][4:6].mean() and whole.seen[4][1] == log["loss"][6]
    with pytest.raises(Killed):
        train(tmp_path / "line.pt", killed_at=killed_at, check=Memory())
    train(tmp_path / "line.pt", check=again)
    assert again.seen == whole.seen


def test_a_state_that_is_kept_is_not_trained_again(tmp_path):
    path, calls = tmp_path / "line.pt", []
    model = nn.Linear(1, 1)

    def step(generator, share):
        calls.append(1)
        model(torch.ones(1, 1)).sum().backward()
        return {}

    for _ in range(2):
        optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
        log = fit(step, model, optimiser, Plan(Schedule(3)), checkpoint=Checkpoint(path, keep=True))
    assert len(calls) == 3 == len(log) and path.exists()


def test_a_broken_checkpoint_is_not_used_and_said_so(tmp_path, capsys):
    path = tmp_path / "line.pt"
    for content in (b"", b"nonsense"):
        path.write_bytes(content)
        fresh = train(path)
        assert capsys.readouterr().out.startswith("line.pt: the checkpoint can not be read")
        assert same(fresh, train())


def shares(number: int, resume=None, killed_at=None, noise: float = 1.0) -> tuple[pd.DataFrame, nn.Linear]:
    """Fit a line to eight points in each step, of which a share has its part, with ``noise`` of its own."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 0.5)
    nn.init.zeros_(model.bias)
    calls = []

    def step(generator: torch.Generator, share: int) -> dict[str, float]:
        calls.append(1)
        if len(calls) == killed_at:
            raise Killed
        x = (torch.arange(16.0).view(8, 2) / 7 + noise * torch.rand((), generator=generator))[share::number]
        loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
        for part in (0.3, 0.7):  # back-propagated in parts, as rounds are
            (part * loss).backward(retain_graph=True)
        return {"loss": loss.item()}

    log = fit(
        step,
        model,
        torch.optim.AdamW(model.parameters(), lr=0.1),
        Plan(SCHEDULE, every=2, shares=number, clip=1.0),
        checkpoint=Checkpoint(resume),
    )
    return log, model


def test_shares_are_averaged():
    (one, alone), (two, halves) = shares(1, noise=0.0), shares(2, noise=0.0)
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
    for a, b in zip(alone.parameters(), halves.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.fixture(params=["1", "2"])
def processes(request, monkeypatch) -> int:
    monkeypatch.setenv("SUM_PROCESSES", request.param)
    return int(request.param)


def test_two_processes_train_as_one_does_to_the_bit(monkeypatch):
    found = []
    for number in ("1", "2"):
        monkeypatch.setenv("SUM_PROCESSES", number)
        found.append(shares(2))
    assert same(*found)


def test_killed_shares_resume_to_the_same_result(tmp_path, processes):
    path = tmp_path / "line.pt"
    if processes == 2:
        with pytest.raises(ProcessRaisedException, match="Killed"):
            shares(2, path, killed_at=5)
    else:
        with pytest.raises(Killed):
            shares(2, path, killed_at=9)
    assert path.exists()
    assert same(shares(2, path), shares(2)) and not path.exists()


def test_each_share_has_its_own_random_numbers(processes):
    model = nn.Linear(1, 1)

    def step(generator: torch.Generator, share: int) -> dict[str, float]:
        (0 * model(torch.ones(1, 1))).sum().backward()
        number = torch.rand((), generator=generator).item()
        return {"mean": number, "spread": number if share else -number}

    log = fit(step, model, torch.optim.SGD(model.parameters(), lr=1.0), Plan(Schedule(3), shares=2))
    assert (log["spread"].abs() > 1e-3).all() and log["mean"].nunique() == 3


def test_what_comes_before_a_step_comes_once_whatever_the_shares(processes):
    model = nn.Linear(1, 1)
    calls = torch.zeros(())

    def step(generator: torch.Generator, share: int) -> dict[str, float]:
        model(torch.ones(1, 1)).sum().backward()
        return {"calls": calls.item()}

    log = fit(
        step,
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        Plan(Schedule(3), shares=2),
        before=calls.fill_,
    )
    assert log["calls"].tolist() == [0, 1, 2]


def test_the_seed_decides():
    assert same(train(seed=1), train(seed=1)) and not same(train(seed=1), train(seed=2))


def test_schedule_by_hand():
    assert [round(Schedule(4)(k), 6) for k in range(4)] == [
        1.0,
        round((1 + math.sqrt(0.5)) / 2, 6),
        0.5,
        round((1 - math.sqrt(0.5)) / 2, 6),
    ]
    assert [Schedule(8, warmup=3, cosine=False)(k) for k in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Schedule(8, warmup=3)(1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 8)) / 2)


def test_the_schedule_scales_each_groups_own_rate():
    model, rates = nn.Linear(1, 1), []
    optimiser = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}])

    def step(generator, worker):
        model(torch.ones(1, 1)).sum().backward()
        rates.append([group["lr"] for group in optimiser.param_groups])
        return {}

    fit(step, model, optimiser, Plan(Schedule(3, warmup=1, cosine=False)))
    assert rates == [[0.05, 0.005], [0.1, 0.01], [0.1, 0.01]]


def test_gradients_are_clipped_and_their_norm_is_logged():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def step(generator, worker):
        (-30 * model(torch.ones(1, 1))).sum().backward()
        return {}

    log = fit(
        step, model, torch.optim.SGD(model.parameters(), lr=1.0), Plan(Schedule(2, cosine=False), clip=0.5)
    )
    assert list(log["gradient_norm"]) == [30.0, 30.0] and model.weight.item() == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_an_error(scale):
    with pytest.raises(
        FloatingPointError,
        match="^line: the gradient of step 0 is not finite; lower the learning rate in params.yaml$",
    ):
        train(scale=scale)


def test_fingerprint_sees_values_and_the_bytes_of_files(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    first = fingerprint({"a": 1, "b": (2,)}, path)
    assert fingerprint({"b": (2,), "a": 1}, path) == first
    assert fingerprint({"a": 2, "b": (2,)}, path) != first
    path.write_bytes(b"2")
    assert fingerprint({"a": 1, "b": (2,)}, path) != first


def test_a_fingerprint_takes_files_by_their_bytes(tmp_path):
    path, content = tmp_path / "weights", bytes(range(256)) * 2**13  # two blocks
    path.write_bytes(content + b"end")
    assert fingerprint(path) == hashlib.sha256(content + b"end").hexdigest()[:16]
    before = fingerprint("a", path)
    path.write_bytes(content + b"END")
    assert fingerprint("a", path) != before
