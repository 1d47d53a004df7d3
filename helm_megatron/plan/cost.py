"""What a model costs by itself, whatever the layout: parameters, and operations of a token."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

from megatron.training import training

from helm_megatron.plan.layout import ONE
from helm_megatron.plan.probe import count
from helm_megatron.plan.recipe import validate


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: of the whole model, each once.
        flops: floating-point operations of a token's training, as `--log-throughput` counts them.
    """

    parameters: int
    flops: float


def cost_of(args: Namespace) -> Cost:
    """Of parsed flags; a vocabulary that is padded counts as it is given.

    Raises:
        ArgumentError: the flags are not those of a model.
    """
    one = validate(args, 1, **ONE.attributes(args))
    one.make_vocab_size_divisible_by, one.padded_vocab_size = 1, one.vocab_size
    step = training.num_floating_point_operations(one, one.global_batch_size)
    return Cost(count(one), step / (one.global_batch_size * one.seq_length))
