"""Riemannian Adam's rows on the CPU by compiled code, where there is a C compiler."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor

from helm_megatron.kernels.points.rule import Rule

_SOURCE = Path(__file__).with_name("points.c")
# Sums may be reordered, so that they can use vector instructions; NaN and infinity stay what they
# are, unlike with -ffast-math.
_FLAGS = (
    *("-O3", "-march=native", "-fPIC", "-shared", "-fno-math-errno"),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
)
# A thread is worth starting for so many entries.
_ENTRIES_PER_THREAD = 1 << 18


class _Scalars(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("rate", "beta1", "beta2", "eps", "correction")),
        *((name, ctypes.c_double) for name in ("c", "min_norm", "rest")),
        ("retraction", ctypes.c_int64),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled code; None without a compiler, $CC or cc. Takes a second, once a process.

    It is compiled for this very machine, so no file of it is kept.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "points.so")
        try:
            command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(path), "-lm"]
            subprocess.run(command, capture_output=True, check=True)
            library = ctypes.CDLL(str(path))
        except (OSError, subprocess.CalledProcessError):
            return None
    library.to_frame.restype = library.step.restype = None
    return library


def is_available() -> bool:
    """Whether there is a C compiler that makes the code."""
    return _library() is not None


def to_frame_(x: Tensor, grad: Tensor, c: float) -> Tensor:
    """As `points.op.to_frame_`, of contiguous fp32 tables."""
    n, d = x.shape
    touched = torch.empty(n, dtype=torch.bool)

    def work(first: int, count: int) -> None:
        parts = (_row(table, first) for table in (x, grad, touched))
        _library().to_frame(_int(count), _int(d), ctypes.c_double(c), *parts)  # type: ignore[union-attr]

    _in_threads(work, n, d)
    return touched


def step_(tables: Sequence[Tensor], touched: Tensor, rule: Rule) -> None:
    """As `points.op.step_`, of contiguous fp32 tables but for the moments."""
    x, grad, momentum, second, *highest = tables
    n, d = x.shape
    scalars = _Scalars(*astuple(rule.scalars()))

    def work(first: int, count: int) -> None:
        rows = (_row(table, first) for table in (x, grad, momentum))
        moments = [(_row(table, first), _int(table.stride(0))) for table in (second, *highest)]
        moments += [(None, _int(0))] * (2 - len(moments))  # type: ignore[list-item]
        flat = (value for pair in moments for value in pair)
        _library().step(  # type: ignore[union-attr]
            _int(count), _int(d), ctypes.byref(scalars), *rows, *flat, _row(touched, first)
        )

    _in_threads(work, n, d)


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _row(table: Tensor, row: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(table.data_ptr() + row * table.stride(0) * table.element_size())


def _in_threads(work: Callable[[int, int], None], n: int, d: int) -> None:
    """Call work(first row, number of rows) for all rows, in as many threads as torch uses."""
    threads = min(torch.get_num_threads(), 1 + n * d // _ENTRIES_PER_THREAD)
    if threads == 1:
        return work(0, n)
    # Portions of a few rows even out what touched rows cost more.
    size = max(1, _ENTRIES_PER_THREAD // max(d, 1))
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, n, size)
        list(pool.map(lambda first: work(first, min(size, n - first)), starts))
    return None
