"""What a model does with a text: times by layer, and how its experts share the tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from helm_megatron.analysis.states import effective_rank
from helm_megatron.geometry import lorentz
from helm_megatron.moe.curvature import bounded_softplus


@dataclass
class Activations:
    """Layer 0 is the embedding; a layer without experts is missing in the dictionaries."""

    # Time coordinates of all tokens, one tensor a layer; none for a Euclidean model.
    times: list[Tensor] = field(default_factory=list)
    # How many directions the states of all tokens use, a number a layer.
    ranks: list[float] = field(default_factory=list)
    # Each expert's share of the choices of its layer; they sum to 1.
    loads: dict[int, Tensor] = field(default_factory=dict)
    # Curvature c of each expert of a layer.
    curvatures: dict[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def observe(model: Any, tokens: Tensor) -> Activations:
    """Run an exported model (`HelmForCausalLM`) on tokens `[b, s]`."""
    found = Activations()
    hooks = []
    for number, layer in enumerate(model.model.layers, start=1):
        router = getattr(layer.mlp, "gate", None)
        if router is None:
            continue
        hooks.append(router.register_forward_hook(_keeps_load(found.loads, number)))
        raw = [expert.curvature for expert in layer.mlp.experts]
        if raw[0] is not None:
            found.curvatures[number] = bounded_softplus(torch.cat(raw)).cpu()
    try:
        states = model.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    finally:
        for hook in hooks:
            hook.remove()
    found.ranks = [effective_rank(x.flatten(0, -2).float().cpu()) for x in states]
    if model.config.geometry == "lorentz":
        c = model.config.curvature
        found.times = [lorentz.time(x, c).flatten().float().cpu() for x in states]
    return found


def _keeps_load(loads: dict[int, Tensor], number: int) -> Any:
    def keep(router: Any, _: Any, out: tuple[Tensor, Tensor]) -> None:
        chosen = out[1]
        counts = torch.bincount(chosen.flatten(), minlength=router.weight.shape[0])
        loads[number] = (counts / counts.sum()).cpu()

    return keep
