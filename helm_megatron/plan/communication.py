"""Bytes that one rank communicates in a step, by collective and group."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

from helm_megatron.plan.layout import Layout
from helm_megatron.plan.stages import Stage, gradient_width, layer_input

Bytes = Counter[tuple[str, str]]


def of_microbatch(stage: Stage, recompute: bool) -> Bytes:
    """Within the layers: forward, backward, and the second forward of recomputation."""
    total: Bytes = Counter()
    for name in stage.names:
        part = stage.parts[name]
        total.update(part.forward.bytes)
        total.update(part.backward.bytes)
        if recompute and name in ("dense", "moe"):
            total.update(part.forward.bytes)
    return total


def of_pipeline(args: Namespace, layout: Layout, rank: int) -> Bytes:
    """What a stage sends to its neighbors for a micro-batch: activations and their gradients."""
    if layout.pipeline == 1:
        return Counter()
    chunks, last = layout.virtual, layout.pipeline - 1
    messages = 2 * chunks - (rank == last) - (rank == 0)
    return Counter({("send", "pp"): messages * layer_input(args, layout)})


def once(args: Namespace, layout: Layout, stage: Stage) -> dict[str, Bytes]:
    """Not for every micro-batch: "gradients" and "parameters" of data parallelism, and the rest.

    Without the distributed optimizer gradients are summed whole and parameters stay.
    """
    wide, narrow = gradient_width(args), args.params_dtype.itemsize
    counts = (("dp", stage.dense), ("expert-dp", stage.expert))
    sequence = sum(part.parameters.sequence for part in stage) if args.sequence_parallel else 0
    rest: Bytes = Counter({("all-reduce", "tp"): sequence * wide})
    if not args.untie_embeddings_and_output_weights and layout.pipeline > 1:
        tied = stage.parts["embedding"].parameters.dense * ("embedding" in stage.names)
        rest["all-reduce", "embedding"] += tied * wide
    if args.use_distributed_optimizer:
        # Experts' parameters have an optimizer of their own, and where the forward pass does not
        # gather, each of the two gathers the parameters of both.
        gathers = 2 if stage.dense and stage.expert and not args.overlap_param_gather else 1
        return {
            "gradients": Counter({("reduce-scatter", g): n * wide for g, n in counts}),
            "parameters": Counter({("all-gather", g): n * narrow * gathers for g, n in counts}),
            "rest": rest,
        }
    gradients = Counter({("all-reduce", g): n * wide for g, n in counts})
    return {"gradients": gradients, "parameters": Counter(), "rest": rest}


def of_step(args: Namespace, layout: Layout, stage: Stage, rank: int, count: int) -> Bytes:
    """All of a step of `count` micro-batches on the stage of pipeline rank `rank`."""
    each = of_microbatch(stage, layout.recompute)
    each.update(of_pipeline(args, layout, rank))
    total = Counter({key: size * count for key, size in each.items()})
    for sizes in once(args, layout, stage).values():
        total.update(sizes)
    return total
