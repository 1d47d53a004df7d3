"""Stand-in: a CPU that says it is a GPU.

`torch.cuda.is_available()` is True, and the CPU answers what is asked of CUDA. So every branch of
Megatron, torch and this package that runs "only where CUDA is" runs: its defaults, its optimizers,
its checks. Not a GPU's: the kernels are the CPU's (a tensor's `is_cuda` is False), NCCL is gloo,
and torch.compile does nothing, as it would take minutes.
"""

import functools
import os
from typing import Any

import torch
import torch.distributed as dist

from helm_megatron.megatron_patches import patch
from helm_megatron.megatron_patches.replace import constant, set_all

# Patches of the CPU's platform that let calls of CUDA through; those of Megatron's decisions
# (initialization, the optimizer) are not among them.
CALLS = ("cpu.devices", "cpu.cuda", "cpu.random_state", "cpu.gloo", "cpu.rng_tracker")
DEVICES, HOPPER = 8, (9, 0)


def pretend() -> None:
    """Be that machine, from before megatron is imported."""
    torch.cuda.is_available = constant(True)
    for name in CALLS[:-1]:
        patch(name).apply()
    torch.cuda.is_available = constant(True)  # the CPU's patch answers False
    properties = torch.cuda.get_device_properties(0)
    properties.major, properties.minor = HOPPER
    answers = {"device_count": constant(DEVICES), "get_device_capability": constant(HOPPER)}
    set_all(torch.cuda, answers)
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    _be_nccl()
    patch("cpu.no_compile").apply()  # imports megatron
    patch("cpu.rng_tracker").apply()


def _be_nccl() -> None:
    """Groups of gloo where NCCL is asked for, of the same ranks."""

    def with_gloo(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            args = tuple("gloo" if arg == "nccl" else arg for arg in args)
            if kwargs.get("backend") in ("nccl", None):
                kwargs.pop("backend", None)
                kwargs |= {} if "gloo" in args else {"backend": "gloo"}
            kwargs.pop("device_id", None)
            kwargs.pop("pg_options", None)
            return function(*args, **kwargs)

        return wrapper

    set_all(dist, {n: with_gloo(getattr(dist, n)) for n in ("init_process_group", "new_group")})
