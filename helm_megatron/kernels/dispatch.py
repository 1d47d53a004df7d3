"""Which implementation of a fused function runs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
import warnings
from pathlib import Path
from types import ModuleType

from torch import Tensor


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed and finds what it builds its launchers with; warns once."""
    if importlib.util.find_spec("triton") is None:
        return False
    missing = []
    if not (os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")):
        missing.append("a C compiler")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        missing.append("Python's headers (python3-dev)")
    if missing:
        warnings.warn(
            f"Triton kernels are off, which costs speed: install {' and '.join(missing)}.",
            stacklevel=2,
        )
    return not missing


def uses_triton(x: Tensor) -> bool:
    """Whether functions of x run in Triton: on CUDA, where Triton works, but for fp64."""
    return x.is_cuda and x.element_size() <= 4 and has_triton()


def kernels(name: str) -> ModuleType:
    """The module of that name in here, `<room>.triton`, imported on first use: it needs Triton."""
    return importlib.import_module(f"helm_megatron.kernels.{name}")
