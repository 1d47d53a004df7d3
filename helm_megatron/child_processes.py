"""Processes that end with the one that started them, however that ends."""

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def ends_with_this() -> Callable[[], None]:
    """For `preexec_fn` of subprocess: the child gets SIGTERM when this process is gone (Linux)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return functools.partial(_die_with, os.getpid(), libc)


def _die_with(parent: int, libc: ctypes.CDLL | None) -> None:
    if libc is not None:
        libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed just now
            os._exit(1)
