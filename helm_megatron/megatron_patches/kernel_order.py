"""Tensor and context parallelism start without CUDA_DEVICE_MAX_CONNECTIONS=1 in the environment.

Upstream: Megatron 0.19 orders communication and computation by it on GPUs before Blackwell, and
refuses such a layout unless whoever starts the process has exported it.
Here: where nobody has set it, it is set when flags that ask for it are validated. CUDA reads it
when the first context is made; Megatron's validation is the first to ask for the device.
Goes: when Megatron sets it.
"""

import argparse
import functools
import os
from typing import Any

from helm_megatron.megatron_patches.replace import in_all_of_megatron

VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"
UPSTREAM = {"megatron.training.arguments.validate_args": None}


def apply() -> None:
    """Replace the validation of arguments."""
    from megatron.training import arguments

    validate_args = arguments.validate_args

    @functools.wraps(validate_args)
    def with_order(args: argparse.Namespace, *rest: Any, **kwargs: Any) -> argparse.Namespace:
        if args.tensor_model_parallel_size > 1 or args.context_parallel_size > 1:
            os.environ.setdefault(VARIABLE, "1")
        return validate_args(args, *rest, **kwargs)

    in_all_of_megatron(validate_args, with_order)
