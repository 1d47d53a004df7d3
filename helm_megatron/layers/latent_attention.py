"""Multi-head latent attention for both geometries (HMLA when its leaves are Lorentz).

Megatron's `MLASelfAttention` with two differences: its down projections are replicated, and the
gradient of the shared rotary key is summed over the tensor-parallel ranks. Megatron's local
backend shards the down projections and then drops the other ranks' part of that gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MultiLatentAttention
from torch import Tensor

from helm_megatron.transformer_config import HelmMLATransformerConfig


@dataclass
class LatentAttentionSubmodules:
    """Builders of the parts: `up` shards heads, `down` is whole on every rank."""

    down: Any
    up: Any
    norm: Any
    core_attention: Any
    linear_proj: Any


class LatentSelfAttention(MLASelfAttention):
    """Multi-head latent attention, sharded over heads; takes and returns `[s, b, hidden]`."""

    def __init__(
        self,
        config: HelmMLATransformerConfig,
        submodules: LatentAttentionSubmodules,
        layer_number: int,
        attn_mask_type: AttnMaskType = AttnMaskType.causal,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        pp_layer_offset: int | None = None,
        name: str | None = None,
    ) -> None:
        # MLASelfAttention's own constructor accepts no linears but Megatron's.
        MultiLatentAttention.__init__(
            self,
            config=config,
            submodules=submodules,
            layer_number=layer_number,
            attention_type="self",
            attn_mask_type=attn_mask_type,
            cp_comm_type=cp_comm_type,
            pg_collection=pg_collection or ProcessGroupCollection.use_mpu_process_groups(),
            pp_layer_offset=pp_layer_offset,
            name=name,
        )
        heads, hidden = config.num_attention_heads, config.hidden_size
        if config.q_lora_rank is None:
            self.linear_q_proj = self._up(submodules, hidden, heads * self.q_head_dim)
        else:
            self.linear_q_down_proj = self._down(submodules, config.q_lora_rank)
            self.q_layernorm = self._norm(submodules, config.q_lora_rank)
            self.linear_q_up_proj = self._up(
                submodules, config.q_lora_rank, heads * self.q_head_dim
            )
        self.linear_kv_down_proj = self._down(
            submodules, config.kv_lora_rank + config.qk_pos_emb_head_dim
        )
        self.kv_layernorm = self._norm(submodules, config.kv_lora_rank)
        self.linear_kv_up_proj = self._up(
            submodules, config.kv_lora_rank, heads * (config.qk_head_dim + config.v_head_dim)
        )

    def _up(self, submodules: LatentAttentionSubmodules, size: int, output_size: int) -> Any:
        return submodules.up(
            size,
            output_size,
            config=self.config,
            init_method=self.config.init_method,
            gather_output=False,
            bias=False,
            skip_bias_add=False,
            is_expert=False,
            tp_group=self.pg_collection.tp,
        )

    def _down(self, submodules: LatentAttentionSubmodules, output_size: int) -> Any:
        return submodules.down(
            self.config.hidden_size,
            output_size,
            config=self.config,
            init_method=self.config.init_method,
            bias=False,
            skip_bias_add=False,
            skip_weight_param_allocation=False,
            is_expert=False,
        )

    def _norm(self, submodules: LatentAttentionSubmodules, size: int) -> Any:
        return submodules.norm(
            config=self.config, hidden_size=size, eps=self.config.layernorm_epsilon
        )

    def _qkv_down_projection(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        q_compressed = hidden_states
        if self.config.q_lora_rank is not None:
            q_compressed, _ = self.linear_q_down_proj(hidden_states)
        kv, _ = self.linear_kv_down_proj(hidden_states)
        if not self.config.sequence_parallel:
            # The latent's gradient is summed by the up projection, the rotary key's here; with
            # sequence parallelism Megatron's gather of the rotary key does it.
            latent, rotary = kv.split(
                [self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim], dim=-1
            )
            rotary = copy_to_tensor_model_parallel_region(rotary, group=self.pg_collection.tp)
            kv = torch.cat([latent, rotary], dim=-1)
        return q_compressed, kv

    def _run_core_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        """Megatron's, but for packed documents, whose heads it trims to the value's width.

        Lorentz heads come out wider, and our cores need no values as wide as the keys.
        """
        if kwargs.get("packed_seq_params") is None or self.config.helm.geometry == "euclidean":
            return super()._run_core_attention(query, key, value, mask, **kwargs)
        return self.core_attention(query, key, value, mask, **kwargs)
