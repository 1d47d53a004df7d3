"""Floating-point operations of a step, for `--log-throughput` and model FLOP utilization.

Upstream: Megatron 0.19 counts the matrix products of its own models by a formula of its arguments.
Here: for HELM and its twin, plus what that formula does not know, minus what it counts too much.
Goes: when a model can give the training loop its own count.
"""

from __future__ import annotations

import argparse

from megatron.training import training
from megatron.training.training import num_floating_point_operations as megatrons_count

UPSTREAM = {"megatron.training.training.num_floating_point_operations": "0e870f7f502f"}

# A multiplication and an addition; forward, and the gradients of both factors.
PER_WEIGHT = 2 * 3


def num_floating_point_operations(
    args: argparse.Namespace,
    batch_size: int,
    seqlen_squared_sum_in_batch: float | None = None,
    total_real_tokens_in_batch: float | None = None,
) -> float:
    """Matrix products of a global batch, forward and backward; attention at its causal half.

    Megatron's own count and its arguments, plus what that does not know: the final projection, the
    times that heads carry through attention and into the linear after it, and the router. What
    Megatron counts of the latents' norms is taken off: they are elementwise, like the rank-1 terms
    of Lorentz linears. Kernels that pad heads do more than is counted. Another model than HELM
    and its twin, whose arguments have no geometry, is counted by Megatron alone.
    """
    squares, tokens = seqlen_squared_sum_in_batch, total_real_tokens_in_batch
    if squares is None:
        squares = batch_size * args.seq_length**2
    if tokens is None:
        tokens = batch_size * args.seq_length
    if not hasattr(args, "geometry"):
        return megatrons_count(args, batch_size, squares, tokens)
    weights = _router_weights(args) - _counted_norms(args)
    pairs = 0
    if args.geometry == "lorentz":
        heads = args.num_layers * args.num_attention_heads
        weights += args.hidden_size**2 + heads * args.hidden_size
        pairs = heads  # half of one more lane in q k and one more in p v
    extra = PER_WEIGHT * (tokens * weights + squares * pairs)
    return megatrons_count(args, batch_size, squares, tokens) + extra


def apply() -> None:
    """Replace the function."""
    training.num_floating_point_operations = num_floating_point_operations


def _router_weights(args: argparse.Namespace) -> int:
    if args.num_experts is None:
        return 0
    freq = args.moe_layer_freq
    layers = -(-args.num_layers // freq) if isinstance(freq, int) else sum(freq)
    return layers * args.hidden_size * args.num_experts


def _counted_norms(args: argparse.Namespace) -> int:
    if not args.multi_latent_attention:
        return 0
    return args.num_layers * (args.kv_lora_rank + (args.q_lora_rank or 0))
