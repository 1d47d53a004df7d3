"""`torch.cuda` of a machine with one device, the CPU. `is_available()` stays False.

Upstream: Megatron 0.19 uses CUDA's streams and events, and asks for the device's properties and for
statistics of its memory; torch without CUDA refuses.
Here: streams and events are those of a device that computes in order; memory is this process's.
Goes: when Megatron asks torch's accelerator, whichever it is.
"""

import contextlib
import functools
import os
import resource
import sys
import types
from collections import defaultdict
from typing import Any

import torch

from helm_megatron.megatron_patches.replace import constant, set_all


class Stream(torch.cpu.Stream):
    """A `torch.cuda.Stream` whose work is always done: the CPU computes in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def record_event(self, event: "Event | None" = None) -> "Event":  # type: ignore[override]
        """The event, or a new one: what it would wait for is done."""
        return event or Event()

    synchronize = constant(None)
    query = constant(True)


class Event(torch.cpu.Event):
    """A `torch.cuda.Event` that has always happened; it measures no time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


def _memory(*args: Any, **kwargs: Any) -> int:
    """Resident memory of this process in bytes; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _peak_memory(*args: Any, **kwargs: Any) -> int:
    """Peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(peak, _memory())  # the kernel keeps the peak less exactly


def _machine_memory(*args: Any, **kwargs: Any) -> tuple[int, int]:
    """Free and total memory of the machine in bytes, as torch.cuda.mem_get_info of a device."""
    free, total = (os.sysconf(f"SC_{kind}_PAGES") for kind in ("AVPHYS", "PHYS"))
    return free * resource.getpagesize(), total * resource.getpagesize()


def _memory_stats(*args: Any, **kwargs: Any) -> dict[str, int]:
    """What torch.cuda.memory_stats counts for a device, for this process; 0 for what is unknown."""
    counts = {"current": _memory(), "peak": _peak_memory()}
    stats = {f"{k}_bytes.all.{c}": counts[c] for k in ("allocated", "reserved") for c in counts}
    return defaultdict(int, stats)


# What functions return, whatever their arguments.
_ANSWERS = {
    "clock_rate": 0,
    "current_device": 0,
    "current_stream": Stream(),
    "default_stream": Stream(),
    "device": contextlib.nullcontext(),
    "device_count": 1,
    "empty_cache": None,
    "get_device_capability": (8, 0),  # --moe-grouped-gemm asks for it; torch then computes
    "get_device_name": "cpu",
    "ipc_collect": None,
    # Accelerate has torch count devices for this, and the count here is 1.
    "is_available": False,
    "is_current_stream_capturing": False,
    "power_draw": 0,
    "reset_peak_memory_stats": None,
    "set_device": None,
    "set_stream": None,
    "synchronize": None,
    "temperature": 0,
    "utilization": 0,
}
_MEMORY = {
    "device_memory_used": _memory,
    "max_memory_allocated": _peak_memory,
    "max_memory_reserved": _peak_memory,
    "mem_get_info": _machine_memory,
    "memory_allocated": _memory,
    "memory_reserved": _memory,
    "memory_stats": _memory_stats,
}
_TENSORS = [f"{t}Tensor" for t in "BFloat16 Bool Byte Double Float Half Int Long".split()]
_NAMES = [*_ANSWERS, *_MEMORY, *_TENSORS, "get_device_properties", "Stream", "Event", "stream"]
UPSTREAM = dict.fromkeys(
    [f"torch.cuda.{name}" for name in _NAMES]
    + ["torch.cuda.nvtx.range_push", "torch.cuda.nvtx.range_pop"]
)


def apply() -> None:
    """Replace the functions and classes of torch.cuda."""
    total = _machine_memory()[1]
    properties = types.SimpleNamespace(name="cpu", major=8, minor=0, total_memory=total)
    answers = {**_ANSWERS, "get_device_properties": properties}
    set_all(torch.cuda, {name: constant(answer) for name, answer in answers.items()})
    # A function of its own for each: torch.compile keeps rules by function.
    set_all(torch.cuda, {name: functools.partial(value) for name, value in _MEMORY.items()})
    set_all(torch.cuda, {"Stream": Stream, "Event": Event, "stream": torch.cpu.StreamContext})
    set_all(torch.cuda, {name: getattr(torch, name) for name in _TENSORS})
    set_all(torch.cuda.nvtx, {"range_push": constant(0), "range_pop": constant(0)})
