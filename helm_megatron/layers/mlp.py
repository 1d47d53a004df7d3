"""LorentzMLP: h = silu(W1 x) * (W3 x) on space coordinates, time(h), W2; Megatron's MLP otherwise.

With Lorentz linears in its slots Megatron's own MLP computes it. Added here: SwiGLU joined with the
tail of fc1, and the checkpoint layout of the gated time weight.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from torch import Tensor

from helm_megatron.layers.linear import shard_gated_time_weight


class LorentzMLP(MLP):
    """Dense feed-forward layer of a HELM block."""

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Points `[s, b, hidden]` to space coordinates of the same shape; no bias is left over."""
        if per_token_scale is not None or not self._plain_swiglu():
            return super().forward(hidden_states, per_token_scale, **kwargs)
        h, _ = self.linear_fc1(hidden_states, gated=True)
        return self.linear_fc2(h)

    def _plain_swiglu(self) -> bool:
        config = self.config
        return (
            config.gated_linear_unit
            and config.activation_func is F.silu
            and config.activation_func_clamp_value is None
            and config.glu_linear_offset == 0
            and not config.use_te_activation_func
            and not config.activation_func_fp8_input_store
        )

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        """Megatron's, with fc1's time weight split like its weight: it loads under any TP."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        key = f"{prefix}linear_fc1.time_weight"
        shard_gated_time_weight(state, key, self, sharded_offsets, metadata or {})
        return state


class LorentzSharedExpert(SharedExpertMLP, LorentzMLP):
    """The shared expert of a MiCE layer, at the hidden curvature."""
