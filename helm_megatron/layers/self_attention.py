"""Megatron's self-attention, whose rotary embedding Lorentz attention takes into its kernels."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.attention import SelfAttention
from torch import Tensor


class LorentzSelfAttention(SelfAttention):
    """Leaves the rotary embedding to its core, which turns heads and takes their times at once."""

    def forward(
        self, hidden_states: Tensor, *args: Any, rotary_pos_emb: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Megatron's: `[s, b, hidden]` to the same."""
        if not self._core_can_rotate(rotary_pos_emb, kwargs):
            return super().forward(hidden_states, *args, rotary_pos_emb=rotary_pos_emb, **kwargs)
        self.core_attention.rotary = rotary_pos_emb, self._yarn_concentration_factor
        try:
            return super().forward(hidden_states, *args, rotary_pos_emb=None, **kwargs)
        finally:
            self.core_attention.rotary = None

    def _core_can_rotate(self, angles: Any, kwargs: dict[str, Any]) -> bool:
        """Whether one table of angles holds for all of q and k, and the core is run now, once.

        Not so for packed documents and in Megatron's inference, which keeps keys that are turned;
        and where only the core is recomputed, it runs again later.
        """
        config = self.config
        return (
            isinstance(angles, Tensor)
            and angles.shape[1:3] == (1, 1)
            and kwargs.get("inference_context") is None
            and kwargs.get("inference_params") is None
            and kwargs.get("packed_seq_params") is None
            and not config.rotary_interleaved
            and not config.no_rope_freq
            and not config.fused_single_qkv_rope
            and not (self.checkpoint_core_attention and self.training)
        )
