"""Megatron is imported, and runs, without torch.compile.

Upstream: Megatron 0.19 decorates its fused functions with torch.compile when it is imported;
`--disable-jit-fuser` comes too late for most of them. On a CPU compiling takes minutes of a start,
and needs a C++ compiler.
Here: megatron is imported while torch.compile does nothing, then `jit_fuser` is turned off.
Goes: when Megatron decides at a function's first call.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

UPSTREAM = {"megatron.core.jit.jit_fuser": None}


def _no_compile(model: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    return _no_compile if model is None else model


def apply() -> None:
    """Import megatron, whatever is decorated there left plain."""
    # It warns that there is no CUDA.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    compile_, torch.compile = torch.compile, _no_compile
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(Apex|transformer-engine)")
            import megatron.training.training  # noqa: F401
            from megatron.core import jit
    finally:
        torch.compile = compile_
    jit.disable_jit_fuser()
