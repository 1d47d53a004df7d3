"""What the runs of a variant cost, by their flags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one training.

    Attributes:
        parameters: of the whole model, each once.
        flops: floating-point operations of the matrix products, as `--log-throughput` counts them.
    """

    parameters: int
    flops: float


def cost_of(flags: Sequence[str], vocabulary: int) -> Cost:
    """The cost of a run; no GPU is touched.

    Args:
        vocabulary: the padded one, which the flags do not tell.

    Raises:
        ArgumentError: the flags are not those of a run.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing is computed
    from helm_megatron import megatron_patches

    megatron_patches.apply()  # before anything imports megatron

    import contextlib
    import io
    import logging

    from megatron.training import training
    from megatron.training.arguments import validate_args

    from helm_megatron import command_line
    from helm_megatron.checks import check_args, megatrons_refusals
    from helm_megatron.plan.probe import count

    logging.getLogger().setLevel(logging.ERROR)  # Megatron puts a handler there, to stdout
    with contextlib.redirect_stdout(io.StringIO()), megatrons_refusals():
        args = command_line.parse(flags)
        # As many ranks as the layout needs; how many there are changes no product.
        args.world_size = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
        args.world_size *= args.context_parallel_size * args.expert_model_parallel_size
        check_args(args)
        validate_args(args)
    args.vocab_size = args.padded_vocab_size = vocabulary
    step = training.num_floating_point_operations(args, args.global_batch_size)
    return Cost(count(args), float(step * args.train_iters))
