"""Every layout of a model on a cluster: those that fit, best first, and why others do not."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from helm_megatron.checks import ArgumentError
from helm_megatron.plan.cluster import Cluster
from helm_megatron.plan.estimate import Estimate, estimate
from helm_megatron.plan.layout import ONE, Layout, candidates
from helm_megatron.plan.parts import PartsOf
from helm_megatron.plan.recipe import validate

# Of the layouts that fit, so many are put to Megatron's own validation.
SHOWN = 10


@dataclass
class Plan:
    """What was found: layouts that fit, the fastest first; those too large, the smallest first.

    `own` is the recipe's layout, or `own_error` why it cannot be. `refused` counts layouts by the
    reason for which the model or Megatron refuses them.
    """

    own: Estimate | None = None
    own_error: str | None = None
    fitting: list[Estimate] = field(default_factory=list)
    too_large: list[Estimate] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


def search(
    args: Namespace,
    own: Layout | None,
    cluster: Cluster,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Plan:
    """Estimate all candidates for parsed flags, and `own`, the recipe's layout."""
    plan, parts_of = Plan(), PartsOf(args)
    simple = validate(args, 1, **ONE.attributes(args))
    layouts = list(candidates(simple, cluster))
    if own is not None and own not in layouts:
        layouts.append(own)
    for i, layout in enumerate(layouts):
        progress(i, len(layouts))
        try:
            found = estimate(simple, layout, cluster, parts_of)
        except (ArgumentError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            plan.refused[reason] += 1
            if layout == own:
                plan.own_error = reason
            continue
        fits = found.memory.total <= cluster.usable_bytes
        (plan.fitting if fits else plan.too_large).append(found)
        if layout == own:
            plan.own = found
    plan.too_large.sort(key=lambda e: e.memory.total)
    plan.fitting = _valid(args, sorted(plan.fitting, key=_rank), cluster, plan.refused)
    return plan


def _rank(found: Estimate) -> tuple[float, int]:
    """Fastest first; of those about as fast, larger micro-batches, whose kernels do better."""
    return float(f"{found.step:.3g}"), -found.layout.micro_batch


def _valid(
    args: Namespace, fitting: list[Estimate], cluster: Cluster, refused: Counter[str]
) -> list[Estimate]:
    """The layouts without those among the first that Megatron refuses."""
    valid: list[Estimate] = []
    for i, found in enumerate(fitting):
        if len(valid) == SHOWN:
            return valid + fitting[i:]
        try:
            validate(args, cluster.gpus, **found.layout.attributes(args))
            valid.append(found)
        except ArgumentError as error:
            refused[str(error).splitlines()[0]] += 1
    return valid
