"""Attention cores: Lorentz attention as dot-product attention on augmented heads, and its twin.

The scores of Lorentz attention, (2c + 2<q,k>) / tau, are up to a constant a dot product of
q' = (2/tau) (q_s, -q_t) and k' = (k_s, k_t), and the centroid needs only sum_j p_j (v_s, v_t). So
any dot-product kernel computes it exactly, in memory linear in the sequence, followed by one
normalization per head.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import Scalar, at_least_fp32
from helm_megatron.layers.context_parallel import causal_chunks, from_first_rank, gather_sequence
from helm_megatron.layers.parallel import filled_parameter

# Clamp of |<m,m>| in the centroid, by precision of the computation, as in the released code.
_CENTROID_EPS = {torch.float32: 1e-6, torch.float64: 1e-8}


def split_time(time: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Carry an fp32 time `[.., 1]` in dtype: itself if that is wide enough, else high and low part.

    One bf16 lane would lose the whole of q_t k_t - q_s.k_s at moderate radii.
    """
    high = time.to(dtype)
    if torch.finfo(dtype).bits >= 32:
        return [high]
    return [high, (time - high.to(time.dtype)).to(dtype)]


def augmented_width(dtype: torch.dtype, d: int, lanes: int) -> int:
    """Width of a head of d space coordinates with its time lanes.

    In low precision up to a multiple of 8, for fused kernels; else one lane carries the time.
    """
    return d + 1 if torch.finfo(dtype).bits >= 32 else -(-(d + lanes) // 8) * 8


def _augmented(space: Tensor, *lanes: Tensor) -> Tensor:
    """Space coordinates, then time lanes, then zeros up to the width of the kernel."""
    d = space.shape[-1]
    zeros = augmented_width(space.dtype, d, len(lanes)) - d - len(lanes)
    return F.pad(torch.cat([space, *lanes], dim=-1), (0, zeros))


def augment_query(q: Tensor, tau: Tensor, c: Scalar) -> Tensor:
    """(2/tau) (q_s, -q_t) of q `[.., d]`, with the lanes that go with `augment_key`.

    The time is taken of the scaled and rounded space part, so the query lies on its hyperboloid
    of curvature c (2/tau)^2 exactly.
    """
    factor = 2 / at_least_fp32(tau)
    scaled = (at_least_fp32(q) * factor).to(q.dtype)
    lanes = split_time(lorentz.time(scaled, c * factor * factor), q.dtype)
    if len(lanes) == 1:
        return _augmented(scaled, -lanes[0])
    high, low = lanes
    return _augmented(scaled, -high, -high, -low)


def augment_key(k: Tensor, c: Scalar) -> Tensor:
    """(k_s, k_t) of k `[.., d]`; in low precision the time as (high, low, high)."""
    lanes = split_time(lorentz.time(k, c), k.dtype)
    return _augmented(k, *lanes, lanes[0]) if len(lanes) == 2 else _augmented(k, *lanes)


def augment_value(v: Tensor, c: Scalar, shift: Tensor | float = 0.0) -> Tensor:
    """(v_s, v_t - shift) of v `[.., d]`; in low precision the time as (high, low)."""
    return _augmented(v, *split_time(lorentz.time(v, c) - shift, v.dtype))


def time_shift(v: Tensor, c: Scalar, group: Any) -> Tensor | float:
    """What to take off the times of v `[s, .., heads, d]` so that their sums round less.

    The kernel rounds sum_j p_j v_t to v's dtype, and m_t^2 - |m_s|^2 magnifies that error where few
    keys are attended. The weights of a softmax sum to 1, so a constant taken off all times of a
    head comes off the sum: the first token's time, which every query sees, leaves the kernel only
    differences to round.
    """
    if torch.finfo(v.dtype).bits >= 32:
        return 0.0
    return from_first_rank(lorentz.time(v[:1].detach(), c), group)


def ambient_centroid(m: Tensor, d: int, c: Scalar, shift: Tensor | float = 0.0) -> Tensor:
    """Normalize sums of augmented values `[.., d + lanes]` to ambient points `[.., 1 + d]`."""
    wide = at_least_fp32(m)
    m_time = wide[..., d:].sum(-1, keepdim=True) + shift
    space = lorentz.normalize(m_time, wide[..., :d], c, eps=_CENTROID_EPS[wide.dtype])
    return torch.cat([lorentz.time(space, c), space], dim=-1).to(m.dtype)


class DotProductAttention(MegatronModule):
    """Causal or masked dot-product attention through torch's fused kernels, O(s) memory.

    Megatron's local core knows neither grouped queries, key widths other than the value's,
    context parallelism nor packed documents. This is the Euclidean model's core, and the kernel
    below the Lorentz one. Context-parallel ranks gather keys and values, whatever
    `--cp-comm-type` says.
    """

    def __init__(
        self,
        config: TransformerConfig,
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
            lengths = document_lengths(packed_seq_params)
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
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        width = max(q.shape[-1], v.shape[-1])
        # Fused kernels want one width; zeros change nothing.
        q, k, padded_v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
        with _dropout_rng(self):
            out = F.scaled_dot_product_attention(
                q,
                k,
                padded_v,
                attn_mask=causal_lower_right(len(query), len(key)) if mask is None else ~mask,
                dropout_p=self.dropout if self.training else 0.0,
                scale=self.softmax_scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        return out[..., : v.shape[-1]].permute(2, 0, 1, 3).flatten(2)


def document_lengths(packed_seq_params: PackedSeqParams) -> list[int]:
    """The number of tokens of each packed document, with its padding."""
    ends = packed_seq_params.cu_seqlens_q_padded
    ends = packed_seq_params.cu_seqlens_q if ends is None else ends
    return ends.diff().tolist()


class LorentzAttention(MegatronModule):
    """Core attention on the hyperboloid: q, k, v are space coordinates, the output ambient heads.

    The temperature tau is learned; it starts at sqrt(heads * ambient key width), divided by the
    factor by which Megatron's `softmax_scale` differs from 1/sqrt(key width) (YaRN). The score
    bias of the released model is left out: the softmax cancels it.
    """

    kernel_class: type = DotProductAttention

    def __init__(
        self,
        config: TransformerConfig,
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
        d = k_channels or config.kv_channels
        self.v_channels = v_channels or config.kv_channels
        self.tp_group, self.cp_group = pg_collection.tp, pg_collection.cp
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        tau = math.sqrt(config.num_attention_heads * (d + 1))
        if softmax_scale is not None:
            tau /= softmax_scale * math.sqrt(d)
        self.temperature = filled_parameter(config, 1, tau)
        self.kernel = self.kernel_class(
            config,
            layer_number,
            attn_mask_type,
            attention_type,
            attention_dropout=attention_dropout,
            softmax_scale=1.0,
            k_channels=augmented_width(config.params_dtype, d, lanes=3),
            v_channels=augmented_width(config.params_dtype, self.v_channels, lanes=2),
            cp_comm_type=cp_comm_type,
            pg_collection=pg_collection,
        )

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
        """q, k `[s, b, heads, d]`, v `[s, b, heads, e]` -> `[s, b, heads * (1 + e)]`.

        Packed documents come without the dimension b, and leave without it.
        """
        c = self.config.helm.curvature
        # Each rank sees its own heads only; the gradient of tau is the sum over all of them.
        tau = copy_to_tensor_model_parallel_region(self.temperature, group=self.tp_group)
        heads = query.shape[-2]
        # Dropped weights no longer sum to 1.
        shift = 0.0 if self.dropout and self.training else time_shift(value, c, self.cp_group)
        v = augment_value(value, c, shift)
        m = self.kernel(
            augment_query(query, tau, c),
            augment_key(key, c),
            v,
            attention_mask,
            attn_mask_type=attn_mask_type,
            packed_seq_params=packed_seq_params,
        )
        m = m.unflatten(-1, (heads, v.shape[-1]))
        if isinstance(shift, Tensor):
            shift = shift.repeat_interleave(heads // value.shape[-2], dim=-2)
        return ambient_centroid(m, value.shape[-1], c, shift).flatten(-2)


@functools.cache
def lorentz_attention(kernel: type) -> type:
    """LorentzAttention over a backend's core attention."""
    return type(f"Lorentz{kernel.__name__}", (LorentzAttention,), {"kernel_class": kernel})


def _dropout_rng(core: DotProductAttention) -> Any:
    """Heads on different tensor-parallel ranks must draw different dropout masks.

    With sequence parallelism the whole layer already runs under such a random state.
    """
    if core.dropout and core.training and not core.config.sequence_parallel:
        return tensor_parallel.get_cuda_rng_tracker().fork()
    return contextlib.nullcontext()
