"""What the benchmarks share: timing in turns, peak memory, and results as Markdown and JSON."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The profiler tells of every start and of a missing GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Medians of one call: seconds on the clock, and of all threads' work on the CPU."""

    wall: float
    cpu: float


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(calls: dict[str, Call], repeats: int, warm_up: int = 2) -> dict[str, Times]:
    """Time calls that take turns, so that all meet the same machine; every round begins with
    another of them.
    """
    names = list(calls)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(-warm_up, repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            synchronize()
            if repeat >= 0:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Times(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in taken.items()
    }


def peak_bytes(call: Call) -> int:
    """Memory in use at the worst moment of a call, beyond what was in use before it.

    Counted by the device's allocator, or that of the CPU.
    """
    if torch.cuda.is_available():
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    return max(_in_use(call))


def kept_bytes(call: Call) -> int:
    """Memory that stays in use while the result of a call is held."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        kept = call()
        after = torch.cuda.memory_allocated()
        del kept
        return after - before
    return _in_use(call)[-1]


def _in_use(call: Call) -> list[int]:
    """Bytes in use on the CPU after every allocation and release in a call; its result is held."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = call()
    del kept
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return list(itertools.accumulate(sizes, initial=0))


def storage_bytes(tensors: Iterable[Any]) -> int:
    """Memory of the distinct storages of tensors; what is no tensor counts nothing."""
    storages = [t.untyped_storage() for t in tensors if torch.is_tensor(t)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of rows with the same columns; None is an empty cell."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [["" if cell is None else str(cell) for cell in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """Where, of which commit and how this is measured."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit or None,
        "command": shlex.join(["python", *sys.argv]),
        "peak resident bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def add_output(parser: argparse.ArgumentParser) -> None:
    """The flags of every benchmark."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write JSON there")
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: torch's)")


def report(rows: Sequence[dict[str, Any]], output: Path | None, details: Any = None) -> None:
    """Print the rows as Markdown under a line about the machine; write all of it to `output`.

    `details` are numbers not rounded for reading; default: the rows.
    """
    about = machine()
    print(f"{about['device']}, torch {about['torch']}, commit {about['commit']}")
    print(f"\n    {about['command']}\n")
    print(markdown(rows), flush=True)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        content = {**about, "results": list(rows) if details is None else details}
        output.write_text(json.dumps(content, indent=1) + "\n")
