"""Worker processes: means over all of them, items in order, failures that are heard."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from sumlib.base.parallel import average, average_gradients, each, processes, together


def test_workers_average_tensors_and_gradients(tmp_path):
    def work(rank: int, folder) -> None:
        values = [torch.tensor([1.0, 2.0]) * (rank + 1), torch.tensor(10.0 * rank)]
        average(values)
        left, right = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
        if rank:
            left.grad = torch.tensor([4.0, 6.0])
        right.grad = torch.tensor([1.0 + rank])
        average_gradients([left, right, torch.zeros(1)])
        torch.save([*values, left.grad, right.grad, torch.get_num_threads()], folder / f"{rank}.pt")

    together(work, 2, tmp_path)
    for rank in range(2):
        first, second, left, right, threads = torch.load(tmp_path / f"{rank}.pt")
        assert (
            first.tolist() == [1.5, 3.0]
            and second.item() == 5.0
            and left.tolist() == [2.0, 3.0]
            and right.item() == 1.5
        )
        assert threads == 1


def test_alone_nothing_is_averaged():
    value, parameter = torch.ones(2), torch.zeros(1, requires_grad=True)
    average([value])
    average_gradients([parameter])
    assert value.tolist() == [1, 1] and parameter.grad is None


def test_the_first_failure_ends_all():
    def work(rank: int) -> None:
        if rank:
            raise ValueError("worker one is out of luck")
        average([torch.zeros(1)])  # would wait for ever

    with pytest.raises(ProcessRaisedException, match="worker one is out of luck"):
        together(work, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_keeps_the_order(workers):
    offset = 5  # a closure
    assert list(each(lambda item: item + offset, range(7), workers)) == list(range(5, 12))


def test_the_environment_says_how_many_processes(monkeypatch):
    monkeypatch.delenv("SUM_PROCESSES", raising=False)
    assert processes() >= 1
    monkeypatch.setenv("SUM_PROCESSES", "3")
    assert processes() == 3
    for wrong in ("0", "-1", "two"):
        monkeypatch.setenv("SUM_PROCESSES", wrong)
        with pytest.raises(
            ValueError, match=f"SUM_PROCESSES is '{wrong}'; allowed: a whole number from 1 on"
        ):
            processes()


def test_one_process_does_all_items_itself(monkeypatch):
    monkeypatch.setenv("SUM_PROCESSES", "1")
    done = []
    list(each(done.append, range(3), 2))
    assert done == [0, 1, 2]


def test_a_call_within_a_call_has_its_own_work(monkeypatch):
    monkeypatch.setenv("SUM_PROCESSES", "2")
    outer = each(lambda item: item * 10, range(4), 2)
    first = next(outer)
    inner = list(each(lambda item: item + 1, range(4), 2))  # while the outer one is not done
    assert [first, *outer] == [0, 10, 20, 30] and inner == [1, 2, 3, 4]


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"  # a zombie has ended
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from sumlib.base.parallel import each\n"
        "def work(item):\n"
        "    (Path(sys.argv[1]) / str(os.getpid())).touch()\n"
        "    time.sleep(600)\n"
        "list(each(work, range(2), 2))\n"
    )
    environment = os.environ | {"SUM_PROCESSES": "2"}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 120
    while len(pids := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    assert all(map(runs, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(runs, pids)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
