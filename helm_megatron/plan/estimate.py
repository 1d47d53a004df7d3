"""The estimated memory and step time of a layout."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from dataclasses import dataclass

from helm_megatron.plan import communication
from helm_megatron.plan.cluster import TERA, Cluster
from helm_megatron.plan.communication import Bytes
from helm_megatron.plan.layout import Layout
from helm_megatron.plan.parts import PartsOf, total
from helm_megatron.plan.stages import Memory, Stage, kinds, memory, stages


@dataclass(frozen=True)
class Estimate:
    """One layout. Memory is that of the fullest stage, all else that of the slowest.

    `flops` and `bytes` are of one rank and step; times are seconds of a step.
    """

    layout: Layout
    parameters: int
    memory: Memory
    flops: float
    bytes: Bytes
    compute: float
    bubble: float
    exposed: float
    microbatches: int

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.compute + self.bubble + self.exposed


@dataclass(frozen=True)
class _Times:
    """Seconds of one micro-batch on one stage, and of what a step adds to it."""

    forward: float
    backward: float
    communication: float
    flops: float
    data_parallel: float


def estimate(args: Namespace, layout: Layout, cluster: Cluster, parts_of: PartsOf) -> Estimate:
    """Of flags validated in any layout; those of the layout itself are not looked at.

    Raises ArgumentError or AssertionError where the model cannot be built in the layout.
    """
    count = layout.microbatches(args, cluster.gpus)
    parallel = stages(args, layout, parts_of(layout), count)
    used = [memory(args, layout, stage, cluster.gpus) for stage in parallel]
    times = [_times(args, layout, cluster, rank, stage) for rank, stage in enumerate(parallel)]
    slowest = max(times, key=lambda t: t.forward + t.backward + t.communication)
    compute = slowest.forward + slowest.backward
    microbatch = compute + slowest.communication
    rank = times.index(slowest)
    stage = parallel[rank]
    steps = communication.of_step(args, layout, stage, rank, count)
    sizes = layout.extents(cluster.gpus)
    return Estimate(
        layout=layout,
        parameters=total(stage.parts, kinds(args)),
        memory=max(used, key=lambda m: m.total),
        flops=slowest.flops * count,
        bytes=Counter({key: n for key, n in steps.items() if n and sizes[key[1]][0] > 1}),
        compute=compute * count,
        bubble=microbatch * (layout.pipeline - 1) / layout.virtual,
        exposed=slowest.communication * count + max(t.data_parallel for t in times),
        microbatches=count,
    )


def _times(args: Namespace, layout: Layout, cluster: Cluster, rank: int, stage: Stage) -> _Times:
    extents = layout.extents(cluster.gpus)

    def seconds(sizes: Bytes) -> float:
        return sum(
            cluster.seconds(collective, size, *extents[group])
            for (collective, group), size in sizes.items()
        )

    forward = sum(part.forward.flops for part in stage)
    backward = sum(part.backward.flops for part in stage)
    if layout.recompute:
        layers = [stage.parts[name] for name in stage.names if name in ("dense", "moe")]
        backward += sum(layer.forward.flops for layer in layers)
    sizes = communication.of_microbatch(stage, layout.recompute)
    sizes.update(communication.of_pipeline(args, layout, rank))
    speed = cluster.tflops * TERA
    once = communication.once(args, layout, stage)
    gradients, parameters = seconds(once["gradients"]), seconds(once["parameters"])
    # Overlapped with the last micro-batch's backward and the first one's forward.
    if args.overlap_grad_reduce:
        gradients = max(0.0, gradients - backward / speed)
    if args.overlap_param_gather:
        parameters = max(0.0, parameters - forward / speed)
    return _Times(
        forward=forward / speed,
        backward=backward / speed,
        communication=seconds(sizes),
        flops=forward + backward,
        data_parallel=gradients + parameters + seconds(once["rest"]),
    )
