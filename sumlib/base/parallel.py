"""Worker processes of one thread each: on a CPU faster for small models than the threads of one process."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, distributed, multiprocessing

from sumlib.base.lifetime import end_with_parent


def processes() -> int:
    """How many processes a job on a CPU may use.

    The environment variable SUM_PROCESSES says so, else one for each core that this process may run on.

    It changes no result, only the time. Raises ValueError if the variable holds no positive whole number.
    """
    wanted = os.environ.get("SUM_PROCESSES")
    if not wanted:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not wanted.isdecimal() or wanted == "0":
        raise ValueError(
            f"the environment variable SUM_PROCESSES is {wanted!r}; "
            "allowed: a whole number from 1 on, or unset for one process a core"
        )
    return int(wanted)


def together(work: Callable[..., None], workers: int, *arguments) -> None:
    """Run ``work(rank, *arguments)`` in ``workers`` forked processes that can `average`; wait for all.

    They start with a copy of everything this process holds; what they change stays with them. The first
    failure ends all and is raised.
    """
    with TemporaryDirectory(prefix="sum-") as folder:
        multiprocessing.start_processes(
            _join, (workers, Path(folder) / "meeting", work, arguments), nprocs=workers, start_method="fork"
        )


def _join(rank: int, workers: int, meeting: Path, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    work(rank, *arguments)
    distributed.barrier()  # the first to leave would end the connections of the others
    distributed.destroy_process_group()


def average(tensors: Sequence[Tensor]) -> None:
    """Mean of each tensor over the workers, in place, in one message; outside `together` nothing changes."""
    if not distributed.is_initialized():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    parts = flat.div_(distributed.get_world_size()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts):
        tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Mean of the parameters' gradients over the workers; one that a worker does not have counts as zero."""
    if distributed.is_initialized():
        owners = [p for p in parameters if p.requires_grad]
        for p in owners:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        average([p.grad for p in owners])


def each(work: Callable, items: Sequence, workers: int) -> Iterator:
    """``work(item)`` of every item, in order, in at most `processes()` forked workers.

    A single worker runs in this process. Workers end with this process, also if it is killed.
    """
    workers = min(workers, processes())
    if workers == 1:
        yield from map(work, items)
        return
    start = (work, os.getpid())  # a closure can not be pickled, but is inherited
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start, start) as pool:
        yield from pool.map(_Worker.call, items)


class _Worker:
    """What a process of `each` works at; set in that process alone."""

    work: Callable

    @classmethod
    def call(cls, item):
        return cls.work(item)


def _start(work: Callable, parent: int) -> None:
    end_with_parent(parent)
    torch.set_num_threads(1)
    _Worker.work = staticmethod(work)
