"""Dot-product attention through torch's fused kernels: the Euclidean core of the local backend."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.lower_right.op import lower_right_attention
from helm_megatron.layers.context_parallel import causal_chunks, gather_sequence
from helm_megatron.transformer_config import HelmTransformerConfig


class DotProductAttention(MegatronModule):
    """Causal or masked dot-product attention through torch's fused kernels, O(s) memory.

    Megatron's local core knows neither grouped queries, key widths other than the value's,
    context parallelism nor packed documents. This is the Euclidean model's core, and the kernel
    below the Lorentz one. Context-parallel ranks gather keys and values, whatever
    `--cp-comm-type` says. With `--attention-backend unfused` scores are written out, `[s, s]`.
    """

    def __init__(
        self,
        config: HelmTransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config)
        self.softmax_scale = softmax_scale or (k_channels or config.kv_channels) ** -0.5
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.cp_group = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """q, k `[s, b, heads, d]`, v `[s, b, heads, e]` -> `[s, b, heads * e]`.

        The mask `[b or 1, 1, s, s]` is True where attention is blocked and includes causality;
        without one attention is causal. With context parallelism s is the rank's share of the
        tokens, but the mask's last dimension is the whole sequence. Packed documents come without
        the dimension b and a mask, and are attended one by one.
        """
        if packed_seq_params is not None:
            lengths = document_bounds(packed_seq_params).diff().tolist()
            documents = (x.unsqueeze(1).split(lengths) for x in (query, key, value))
            parts = [self._attend(*qkv) for qkv in zip(*documents, strict=True)]
            return torch.cat(parts).squeeze(1)
        if self.cp_group.size() == 1:
            return self._attend(query, key, value, attention_mask)
        key, value = (gather_sequence(x, self.cp_group) for x in (key, value))
        if attention_mask is not None:
            return self._attend(query, key, value, attention_mask)
        chunks = causal_chunks(query, self.cp_group)
        return torch.cat([self._attend(q, key[:end], value[:end]) for q, end in chunks])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
        """The shapes of `forward`; without a mask the last query sees all keys."""
        # A view of the linear's output would keep queries and keys alive from forward to backward.
        q, k, v = (x.contiguous().permute(1, 2, 0, 3) for x in (query, key, value))
        width = max(q.shape[-1], v.shape[-1])
        # Fused kernels want one width; zeros change nothing. F.pad copies even if it adds none.
        q, k, padded_v = (
            x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v)
        )
        with _dropout_rng(self), _kernels(self.config.attention_backend):
            out = self._kernel(q, k, padded_v, mask)
        return out[..., : v.shape[-1]].permute(2, 0, 1, 3).flatten(2)

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q `[b, heads, s, d]`, k and v `[b, groups, keys, d]` -> `[b, heads, s, d]`."""
        dropout = self.dropout if self.training else 0.0
        unfused = self.config.attention_backend == AttnBackend.unfused
        square, on_cpu = q.shape[-2] == k.shape[-2], dispatch.on_cpu(q)
        if mask is None and not square and on_cpu and not dropout and not unfused:
            group = q.shape[1] // k.shape[1]
            k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
            return lower_right_attention(q, k, v, self.softmax_scale)
        allowed = None if mask is None else ~mask
        # Torch's causal bias allocates its whole size, so it is made only where it is needed.
        if mask is None and not square:
            allowed = causal_lower_right(q.shape[-2], k.shape[-2])
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=dropout,
            is_causal=mask is None and square,
            scale=self.softmax_scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )


def document_bounds(packed_seq_params: PackedSeqParams) -> Tensor:
    """Where each packed document starts, padding included, and where the last one ends."""
    padded = packed_seq_params.cu_seqlens_q_padded
    return packed_seq_params.cu_seqlens_q if padded is None else padded


def _kernels(backend: AttnBackend) -> Any:
    """torch's choice of kernels, or for `unfused` its plain matrix products and softmax."""
    return sdpa_kernel(SDPBackend.MATH) if backend == AttnBackend.unfused else nullcontext()


def _dropout_rng(core: DotProductAttention) -> Any:
    """Heads on different tensor-parallel ranks must draw different dropout masks.

    With sequence parallelism the whole layer already runs under such a random state.
    """
    if core.dropout and core.training and not core.config.sequence_parallel:
        return tensor_parallel.get_cuda_rng_tracker().fork()
    return nullcontext()
