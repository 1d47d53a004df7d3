"""Megatron's training starts without CUDA.

Upstream: in Megatron 0.19 `initialize_megatron` asserts that there is CUDA unless it is called with
`allow_no_cuda`, which `pretrain` does not pass on.
Here: it is called with that.
Goes: when `pretrain` has the argument too.
"""

import functools

from helm_megatron.megatron_patches.replace import in_all_of_megatron

UPSTREAM = {"megatron.training.initialize.initialize_megatron": "1894d53ca729"}


def apply() -> None:
    """Give the argument its other value, wherever Megatron calls the function."""
    from megatron.training.initialize import initialize_megatron

    without_cuda = functools.partial(initialize_megatron, allow_no_cuda=True)
    in_all_of_megatron(initialize_megatron, without_cuda)
