"""Which implementation of an operation runs: the one place that asks for Triton or a device."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

# What Triton is built with, in words.
TRITON_NEEDS = "Triton, a C compiler and Python's headers"


def implementation(room: str, x: Tensor) -> ModuleType:
    """The module of `kernels.<room>` for functions of x: `triton` if that takes x, else `cpu`."""
    return _module(room, "triton" if uses_triton(x) else "cpu")


def triton(room: str) -> ModuleType:
    """The module `kernels.<room>.triton`, where nothing else computes what it does."""
    return _module(room, "triton")


def for_experts(x: Tensor, widths: Sequence[int]) -> ModuleType:
    """The module of `kernels.experts` for rows x of experts with matrices of these widths."""
    grouped = uses_triton(x) and fits_grouped_product(x, widths)
    return _module("experts", "one_product" if grouped else "one_by_one")


def fits_grouped_product(x: Tensor, widths: Sequence[int]) -> bool:
    """Whether torch's grouped product takes these: bf16, and rows of whole 16 bytes."""
    return x.dtype == torch.bfloat16 and len(x) > 0 and not any(width % 8 for width in widths)


def for_points(tables: Sequence[Tensor]) -> ModuleType:
    """The module of `kernels.points` for these tables, of which points, gradients, momenta lead.

    Those three must be contiguous, and all fp32, for any but the plain twin: Triton on CUDA, C on
    the CPU where there is a compiler.
    """
    name = "plain"
    fp32 = all(table.dtype == torch.float32 for table in tables)
    if fp32 and all(table.is_contiguous() for table in tables[:3]):
        if uses_triton(tables[0]):
            name = "triton"
        elif on_cpu(tables[0]) and _module("points", "cpu").is_available():
            name = "cpu"
    return _module("points", name)


def on_cpu(x: Tensor) -> bool:
    """Whether x lives where torch's own functions are slow, or keep more than they must."""
    return x.device.type == "cpu"


def uses_triton(x: Tensor) -> bool:
    """Whether functions of x run in Triton: on CUDA, where Triton works, but for fp64."""
    return x.is_cuda and x.element_size() <= 4 and has_triton()


def triton_lacks(x: Tensor) -> str | None:
    """What Triton kernels of x lack here, in words; None if they run, be it in its interpreter."""
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return "a GPU"
    return None if has_triton() else TRITON_NEEDS


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed and finds what it builds its launchers with; warns once."""
    if importlib.util.find_spec("triton") is None:
        return False
    missing = missing_for_triton()
    if missing:
        warnings.warn(
            f"Triton kernels are off, which costs speed: install {' and '.join(missing)}.",
            stacklevel=2,
        )
    return not missing


def missing_for_triton() -> list[str]:
    """What Triton kernels need and this machine does not have, in words."""
    missing = [] if importlib.util.find_spec("triton") else ["Triton"]
    if not (os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")):
        missing.append("a C compiler")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        missing.append("Python's headers (python3-dev)")
    return missing


@functools.cache
def _module(room: str, name: str) -> ModuleType:
    """A module of a room, imported on first use: not every machine has what it needs."""
    return importlib.import_module(f"helm_megatron.kernels.{room}.{name}")
