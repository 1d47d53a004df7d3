"""Which implementation of a fused function runs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

from torch import Tensor


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def uses_triton(x: Tensor) -> bool:
    """Whether functions of x run in Triton: on CUDA, where Triton is installed, but for fp64."""
    return x.is_cuda and x.element_size() <= 4 and _has_triton()


def kernels(name: str) -> ModuleType:
    """The module `triton_<name>`, imported on first use: it needs Triton."""
    return importlib.import_module(f"helm_megatron.kernels.triton_{name}")
