"""What the parts of a layout take, probed once for layouts that differ in nothing that matters."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import replace

from helm_megatron.plan.layout import Layout
from helm_megatron.plan.probe import Part, Section, probe
from helm_megatron.plan.recipe import validate


class PartsOf:
    """Embedding, layers of each kind and head of a model under any layout, for one micro-batch.

    All is proportional to the sequences of a micro-batch. The number of expert-parallel ranks
    changes only how many experts a rank holds, if it is more than one: each rank computes as many
    tokens.
    """

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self._probed: dict[Layout, dict[str, Part]] = {}

    def __call__(self, layout: Layout) -> dict[str, Part]:
        """The parts; raises ArgumentError or AssertionError where the model refuses the layout."""
        probed = self._probe_like(layout)
        if probed not in self._probed:
            attributes = probed.attributes(self.args)
            world = math.lcm(probed.tensor * probed.context, probed.expert * probed.expert_tensor)
            args = validate(self.args, world, **attributes, global_batch_size=world)
            self._probed[probed] = probe(args)
        experts = probed.expert / layout.expert
        return {
            name: _scaled(part, layout.micro_batch, experts)
            for name, part in self._probed[probed].items()
        }

    def _probe_like(self, layout: Layout) -> Layout:
        # Two local experts, as one needs no sorting of its tokens.
        count = self.args.num_experts or 1
        expert = layout.expert
        if 1 < expert < count:
            expert = count // 2 if count % 2 == 0 else expert
        return replace(layout, pipeline=1, virtual=1, micro_batch=1, recompute=False, expert=expert)


def _scaled(part: Part, sequences: int, experts: float) -> Part:
    """The part for a micro-batch of so many sequences, and so many times the local experts."""
    shards = replace(part.parameters, expert=round(part.parameters.expert * experts))
    return Part(
        parameters=shards,
        saved=part.saved * sequences,
        working=part.working * sequences,
        forward=_section(part.forward, sequences),
        backward=_section(part.backward, sequences),
    )


def _section(section: Section, sequences: int) -> Section:
    scaled = {key: size * sequences for key, size in section.bytes.items()}
    return Section(section.flops * sequences, type(section.bytes)(scaled))


def total(parts: dict[str, Part], kinds: list[str]) -> int:
    """Parameters of the whole model whose layers are of these kinds."""
    return sum(parts[name].parameters.total for name in ["embedding", *kinds, "head"])
