"""Which rank the others wait for in vain: it hangs, or it has died.

torch says only that a connection timed out or closed. Every rank leaves its host and process id in
the run's store when it starts; a rank whose communication failed says so there, and those that do
not within a few seconds are to blame. With NCCL, whose watchdog ends a process by itself, none of
this is reached; gloo raises errors.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import threading
import time
from datetime import datetime

import torch
import torch.distributed as dist

# In what gloo raises.
_TIMED_OUT = re.compile(r"Timed out waiting (\d+)ms")
_CLOSED = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Connection refused")
# How long a rank that failed waits for the others to say so, too.
_GRACE_SECONDS = 10.0


def introduce(model: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Leave this rank's host and process id for others to name; returns the model as it is.

    A hook of the model's making, which is the first that we hear of when ranks are connected.
    """
    _store().set(_key("is", dist.get_rank()), f"process {os.getpid()} on {socket.gethostname()}")
    return model


def explanation(error: BaseException, args: argparse.Namespace) -> str | None:
    """One line about a failed communication: the ranks to blame, since when, what to look at.

    Takes some seconds. None if the error is another, or says nothing about ranks.
    """
    text = str(error)
    timed_out = _TIMED_OUT.search(text)
    if not timed_out and not _CLOSED.search(text):
        return None
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    missing: list[str] = []
    # Where the store's own process hangs, even asking for a key may take forever.
    asking = threading.Thread(target=_find_missing, args=(missing,), daemon=True)
    asking.start()
    asking.join(_GRACE_SECONDS + 5)
    iteration = getattr(args, "curr_iteration", None)
    where = "" if iteration is None else f" in iteration {iteration + 1}"
    if asking.is_alive():
        missing = ["rank 0, or whatever keeps the run's store, which does not answer"]
    who = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    if timed_out:
        seconds = int(timed_out[1]) / 1000
        since = datetime.fromtimestamp(time.time() - _GRACE_SECONDS - seconds).strftime("%H:%M:%S")
        return (
            f"no answer since {since} ({seconds:g} s){where} from {who or 'some rank'}: it hangs; "
            "look at what it does (py-spy dump --pid), at its log, its node, its disk and its "
            "network; --distributed-timeout-minutes says how long to wait"
        )
    return (
        f"connection lost{where} to {who or 'a rank that failed itself'}: it was killed, or ended; "
        "look at its log, and at its node for lack of memory"
    )


def _find_missing(missing: list[str]) -> None:
    """Say that this rank failed, and add those that do not."""
    store, ranks = _store(), set(range(dist.get_world_size()))
    try:
        store.set(_key("failed", dist.get_rank()), "")
        end = time.monotonic() + _GRACE_SECONDS
        while ranks and time.monotonic() < end:
            ranks = {rank for rank in ranks if not store.check([_key("failed", rank)])}
            time.sleep(0.2)
        for rank in sorted(ranks):
            known = store.check([_key("is", rank)])
            who = f" ({store.get(_key('is', rank)).decode()})" if known else ""
            missing.append(f"rank {rank}{who}")
    except RuntimeError:  # the store is gone
        missing[:] = ["rank 0, or whatever kept the run's store, which is gone"]


def _key(what: str, rank: int) -> str:
    return f"helm_megatron/{what}/{rank}"


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
