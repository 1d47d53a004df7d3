"""What the runs of a variant cost, by their flags."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one training.

    Attributes:
        parameters: of the whole model, each once.
        flops: floating-point operations of the matrix products of all iterations.
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

    from helm_megatron.plan import cost
    from helm_megatron.plan.recipe import parse

    logging.getLogger().setLevel(logging.ERROR)  # Megatron puts a handler there, to stdout
    args = parse(flags)
    args.vocab_size = vocabulary
    model = cost.cost_of(args)
    tokens = args.train_iters * args.global_batch_size * args.seq_length
    return Cost(model.parameters, model.flops * tokens)
