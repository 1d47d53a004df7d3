"""LorentzMLP: h = silu(W1 x) * (W3 x) on space coordinates, time(h), W2; Megatron's MLP otherwise.

With Lorentz linears in its slots Megatron's own MLP computes it; only the checkpoint layout of
the gated time weight is added.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP

from helm_megatron.layers.linear import shard_gated_time_weight

_MLP: Any = object  # to the type checker; at run time the mixin stands before an MLP


class _GatedTimeWeight(_MLP):
    """Mixin over Megatron's MLP: checkpoints of fc1's time weight load under any TP."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        key = f"{prefix}linear_fc1.time_weight"
        shard_gated_time_weight(state, key, self, sharded_offsets, metadata or {})
        return state


class LorentzMLP(_GatedTimeWeight, MLP):
    """Dense feed-forward layer of a HELM block."""


class LorentzSharedExpert(_GatedTimeWeight, SharedExpertMLP):
    """The shared expert of a MiCE layer, at the hidden curvature."""
