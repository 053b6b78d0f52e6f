"""Processes that end with their parent, also where it is killed."""

import ctypes
import os
import signal
import sys
import threading
import time


def end_with_parent(parent: int | None = None) -> None:
    """Have this process killed when its parent ends, however that ends; ``parent`` is its id, if it is known.

    The kernel does so on Linux. Elsewhere a thread looks every second.
    """
    parent = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
