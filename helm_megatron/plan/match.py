"""Widths with which a model's twin, of the other geometry, costs the same: a fair comparison.

HELM has weights and products that its Euclidean twin lacks (times, the final projection), so at
equal widths the two are nearly of one size. The feed-forward layers' widths make up for the rest.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from helm_megatron.checks import ArgumentError, flag_of
from helm_megatron.plan.cost import Cost, cost_of
from helm_megatron.plan.layout import ONE
from helm_megatron.plan.recipe import parse, validate
from helm_megatron.plan.stages import kinds

# Of layers of each kind; the last is None without shared experts.
WIDTHS = {
    "dense": ("ffn_hidden_size",),
    "moe": ("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
}


@dataclass(frozen=True)
class Match:
    """A model and its twin, at the widths of the model and at those that cost the same.

    Attributes:
        model: cost of the flags as they are.
        same_widths: cost of the other geometry with no other change.
        twin: cost with `widths`.
        geometry: of the twin.
        widths: by attribute, of those that the model has.
    """

    model: Cost
    same_widths: Cost
    twin: Cost
    geometry: str
    widths: dict[str, int]


def match(flags: Sequence[str], what: str, multiple: int) -> Match:
    """The twin of a model that has as many parameters, or FLOPs.

    Both are affine in the widths, so two twins tell how many rows each of their channels is worth.

    Args:
        what: "parameters" or "flops".
        multiple: the widths are multiples of this.

    Raises:
        ArgumentError: the flags cannot be, or have no width to change.
    """
    args = parse(flags)
    geometry = "euclidean" if args.geometry == "lorentz" else "lorentz"
    other = parse([*flags, "--geometry", geometry])
    widths = _widths(validate(args, 1, **ONE.attributes(args)))

    def twin(scale: float) -> tuple[dict[str, int], Cost]:
        scaled = {n: max(1, round(w * scale / multiple)) * multiple for n, w in widths.items()}
        vars(other).update(scaled)
        return scaled, cost_of(other)

    model = cost_of(args)
    vars(other).update(widths)
    same, wanted = cost_of(other), getattr(model, what)
    first, second = twin(1.0), twin(2.0)
    slope = getattr(second[1], what) - getattr(first[1], what)
    scale = 1 + (wanted - getattr(first[1], what)) / slope
    if scale <= 0:
        raise ArgumentError(
            f"{flag_of('ffn_hidden_size')}: no width of the twin costs as little as the model"
        )
    found, its = twin(scale)
    return Match(model, same, its, geometry, found)


def _widths(args: Namespace) -> dict[str, int]:
    """The widths that validated flags have a use for."""
    names = [name for kind in WIDTHS if kind in kinds(args) for name in WIDTHS[kind]]
    return {name: width for name in names if (width := getattr(args, name))}


def as_json(found: Match) -> str:
    """The same for programs."""
    return json.dumps(asdict(found), indent=2)


def as_text(found: Match, what: str) -> str:
    """The costs and the twin's flags, for a terminal."""
    names = " ".join(f"{flag_of(name)} {width}" for name, width in found.widths.items())
    lines = [
        "                     parameters            MFLOPs a token",
        f"the recipe     {_shown(found.model, found.model)}",
        f"same widths    {_shown(found.same_widths, found.model)}",
        f"matched        {_shown(found.twin, found.model)}",
        "",
        f"The twin of as many {what}:",
        f"    --geometry {found.geometry} {names}",
    ]
    return "\n".join(lines)


def _shown(cost: Cost, model: Cost) -> str:
    def difference(value: float, of: float) -> str:
        return "" if cost is model else f"{value / of - 1:+.2%}"

    return (
        f"{cost.parameters:16,} {difference(cost.parameters, model.parameters):>8}"
        f"{cost.flops / 1e6:12,.2f} {difference(cost.flops, model.flops):>8}"
    ).rstrip()
