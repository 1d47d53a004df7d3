"""Everything of Megatron and torch that is replaced or mended: one module for each thing.

Each says what upstream does and why that does not serve, what is done here, and when the patch can
go. `apply()` does it; `UPSTREAM` names what it replaces or relies on, Megatron's functions with a
fingerprint of the source that the patch was written for. `tests/megatron_patches/test_patches.py`
fails, and names the patch, when the installed Megatron has another, or no longer needs the patch.

Every program calls `apply()` before anything imports megatron::

    from helm_megatron import megatron_patches

    megatron_patches.apply()
"""

import functools
import importlib
import sys
from collections.abc import Mapping
from typing import Protocol, cast

# Where there is no CUDA, in this order; `no_compile` is the first that imports megatron.
WITHOUT_CUDA = (
    "cpu.devices",
    "cpu.cuda",
    "cpu.random_state",
    "cpu.gloo",
    "cpu.no_compile",
    "cpu.initialization",
    "cpu.rng_tracker",
)
EVERYWHERE = (
    "compiled_helpers",
    "help_texts",
    "kernel_order",
    "odd_widths",
    "yarn_fields",
    "optimizer_groups",
    "dp_reshardable",
    "adam",
    "points_optimizer",  # takes the Adam that is there
    "flops",
    "checkpoint_index",
    "data_reads",
    "first_loss",
    "no_validation",
    "schedule",
    "checkpoint_hashes",
    "checkpoint_processes",
    "exit_signals",
    "extra_states",
    "fixed_validation",
)


class Patch(Protocol):
    """A module of this package."""

    # Dotted names, each with the fingerprint of its source; None where that says nothing, as it is
    # torch's or no function: then a probe of the tests says how it behaves.
    UPSTREAM: Mapping[str, str | None]

    def apply(self) -> None:
        """Replace what is to be replaced."""


def patch(name: str) -> Patch:
    """The module of a name in the lists above."""
    return cast(Patch, importlib.import_module(f"{__name__}.{name}"))


@functools.cache
def apply() -> None:
    """Replace everything, and import megatron with that. Safe to call again.

    Raises:
        RuntimeError: there is no CUDA, and megatron is imported already: it has kept what would be
            replaced.
    """
    apply_without_cuda()
    for name in EVERYWHERE:
        patch(name).apply()


@functools.cache
def apply_without_cuda() -> bool:
    """Let Megatron run on the CPU if there is no CUDA; the part of `apply` that depends on it.

    Returns:
        True if Megatron runs on the CPU, False if CUDA is available: then nothing was changed.
    Raises:
        RuntimeError: as `apply`.
    """
    from helm_megatron.megatron_patches import cpu

    if not cpu.is_cpu():
        return False
    if "megatron.core" in sys.modules:
        raise RuntimeError("call megatron_patches.apply() before megatron is imported")
    for name in WITHOUT_CUDA:
        patch(name).apply()
    return True
