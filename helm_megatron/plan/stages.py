"""The pipeline stages of a layout: which parts of the model each has, and its memory."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

from helm_megatron.arguments import config_from_args
from helm_megatron.plan.layout import Layout
from helm_megatron.plan.probe import Part
from helm_megatron.specs import moe_pattern

# Adam keeps two numbers of four bytes a parameter.
MOMENTS = 8
FP32 = 4


@dataclass(frozen=True)
class Stage:
    """The parts of one pipeline stage, in order, and how many micro-batches it holds at once."""

    names: list[str]
    parts: dict[str, Part]
    in_flight: float

    def __iter__(self) -> Iterator[Part]:
        return (self.parts[name] for name in self.names)

    @property
    def dense(self) -> int:
        """Parameters of this rank that are reduced over all data-parallel ranks."""
        return sum(part.parameters.dense for part in self)

    @property
    def expert(self) -> int:
        """Parameters of this rank that are reduced over those with the same experts."""
        return sum(part.parameters.expert for part in self)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def kinds(args: Namespace) -> list[str]:
    """The kind of every layer of validated flags, by the part's name."""
    return ["moe" if moe else "dense" for moe in moe_pattern(config_from_args(args))]


def stages(args: Namespace, layout: Layout, parts: dict[str, Part], count: int) -> list[Stage]:
    """The stages of a layout that divides the layers; a step has `count` micro-batches."""
    names = kinds(args)
    each = args.num_layers // (layout.pipeline * layout.virtual)
    tied = not args.untie_embeddings_and_output_weights
    found = []
    for rank in range(layout.pipeline):
        firsts = range(rank * each, args.num_layers, layout.pipeline * each)
        mine = [name for first in firsts for name in names[first : first + each]]
        if rank == 0:
            mine = ["embedding", *mine]
        if rank == layout.pipeline - 1:
            # The last stage has its own copy of tied weights.
            mine = [*mine, *["embedding"] * (tied and rank > 0), "head"]
        found.append(Stage(mine, parts, _in_flight(layout, rank, count)))
    return found


def _in_flight(layout: Layout, rank: int, count: int) -> float:
    """Micro-batches whose activations a stage holds at once; a chunk counts as its part of one."""
    after = layout.pipeline - rank
    if layout.virtual == 1:
        return min(count, after)
    chunks = 2 * (after - 1) + (layout.virtual - 1) * layout.pipeline + 1
    return min(count * layout.virtual, chunks) / layout.virtual


def layer_input(args: Namespace, layout: Layout) -> int:
    """Bytes of the activations between two layers on one rank."""
    tokens = layout.micro_batch * args.seq_length // layout.context
    width = args.params_dtype.itemsize
    return tokens * args.hidden_size * width // layout.tensor


def activations(stage: Stage, recompute: bool, between: int) -> float:
    """Bytes of activations at the worst moment; `between` those that recomputation keeps.

    The head's are freed before any layer's backward, and it holds one micro-batch's.
    """
    held = head = working = 0.0
    for name in stage.names:
        part = stage.parts[name]
        if name == "head":
            head = part.saved + part.working
        elif recompute and name != "embedding":
            held += between
            working = max(working, part.saved + part.working)
        else:
            held += part.saved
            working = max(working, part.working)
    return held * stage.in_flight + max(head, working)


def memory(args: Namespace, layout: Layout, stage: Stage, gpus: int) -> Memory:
    """What a rank of the stage holds. Parameters, gradients and optimizer states are exact but for
    the padding of Megatron's buffers; activations are those of the probed parts.
    """
    extents = layout.extents(gpus)
    width = args.params_dtype.itemsize
    states = MOMENTS + (FP32 if width < FP32 else 0)  # and its own copy of the weights
    shared = args.use_distributed_optimizer
    dense, expert = (
        count / (extents[group][0] if shared else 1)
        for count, group in ((stage.dense, "dp"), (stage.expert, "expert-dp"))
    )
    return Memory(
        parameters=(stage.dense + stage.expert) * width,
        gradients=(stage.dense + stage.expert) * gradient_width(args),
        optimizer=(dense + expert) * states,
        activations=activations(stage, layout.recompute, layer_input(args, layout)),
    )


def gradient_width(args: Namespace) -> int:
    """Bytes of a number in Megatron's gradient buffers."""
    return FP32 if args.accumulate_allreduce_grads_in_fp32 else args.params_dtype.itemsize
