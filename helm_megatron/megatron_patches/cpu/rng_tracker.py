"""Megatron's tracker of random states sets the CPU's generator.

Upstream: in Megatron 0.19 `_set_cuda_rng_state` waits for CUDA to be initialized, and a fork of the
tracker warns if the CPU's random state changes within it.
Here: the state is set at once. The warning is not given: with `random_state` both are one.
Goes: with `random_state`.
"""

import logging

import torch

from helm_megatron.megatron_patches.replace import in_all_of_megatron

UPSTREAM = {
    "megatron.core.tensor_parallel.random._set_cuda_rng_state": "dea947ca0b7d",
    "megatron.core.tensor_parallel.random.CudaRNGStatesTracker.fork": "38c112ff6e36",
}


def apply() -> None:
    """Replace the function, and filter the warning."""
    from megatron.core.tensor_parallel import random

    in_all_of_megatron(
        random._set_cuda_rng_state, lambda state, *args, **kwargs: torch.set_rng_state(state)
    )
    logging.getLogger(random.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
