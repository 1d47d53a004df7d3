"""The attention core on the hyperboloid, over the kernel that `--attention-backend` chooses."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import Scalar, at_least_fp32
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.augment.lanes import augmented_width
from helm_megatron.kernels.augment.op import augment, centroid
from helm_megatron.kernels.augment.rotary import tables, turned
from helm_megatron.kernels.flash.op import DTYPES, MAX_WIDTH, flash_attention
from helm_megatron.layers.context_parallel import from_first_rank
from helm_megatron.layers.dot_product import DotProductAttention, document_bounds
from helm_megatron.layers.parallel import filled_parameter
from helm_megatron.transformer_config import HelmTransformerConfig


class LorentzAttention(MegatronModule):
    """Core attention on the hyperboloid: q, k, v are space coordinates, the output ambient heads.

    The temperature tau is learned; it starts at sqrt(heads * ambient key width), divided by the
    factor by which Megatron's `softmax_scale` differs from 1/sqrt(key width) (YaRN). The score
    bias of the released model is left out: the softmax cancels it.

    `--attention-backend` chooses the kernel: `flash` is Lorentz flash attention in Triton, `fused`
    and `unfused` those of the Euclidean core (torch's, or Transformer Engine's) on augmented
    heads; `auto` is `flash` where that can be, else `fused`.
    """

    kernel_class: type = DotProductAttention
    # Angles of q and k `[s, 1, 1, width]` and a factor on both, where they come unturned.
    rotary: tuple[Tensor, float] | None = None

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
        rotary = None if self.rotary is None else tables(*self.rotary)
        if self._flash(query, value, attention_mask):
            if rotary is not None:
                query, key = turned(query, rotary), turned(key, rotary)
            return _flash_attention(query, key, value, tau, c, packed_seq_params)
        dtype, heads, d = query.dtype, query.shape[-2], value.shape[-1]
        query, key, value = (self.computed_in(x) for x in (query, key, value))
        # Dropped weights no longer sum to 1.
        shift = None if self._drops() else time_shift(value, c, self.cp_group)
        q, k, v = augment(query, key, value, tau, c, shift, rotary)
        m = self.kernel(
            q,
            k,
            v,
            attention_mask,
            attn_mask_type=attn_mask_type,
            packed_seq_params=packed_seq_params,
        )
        m = m.unflatten(-1, (heads, v.shape[-1]))
        if shift is not None:
            shift = shift.repeat_interleave(heads // value.shape[-2], dim=-2)
        return centroid(m, d, c, shift).to(dtype).flatten(-2)

    def computed_in(self, x: Tensor) -> Tensor:
        """x as the kernel is to see it: on the CPU in at least fp32.

        A kernel's sums rounded to bf16 lose what m_t^2 - |m_s|^2 needs where heads lie far out.
        """
        return at_least_fp32(x) if dispatch.on_cpu(x) else x

    def _drops(self) -> bool:
        return bool(self.dropout) and self.training

    def _flash(self, query: Tensor, value: Tensor, mask: Tensor | None) -> bool:
        """Whether Lorentz flash attention is to be used: if it can, or on demand."""
        backend = self.config.attention_backend
        if backend not in (AttnBackend.auto, AttnBackend.flash):
            return False
        obstacle = next((why for found, why in self._obstacles(query, value, mask) if found), None)
        if obstacle and backend == AttnBackend.flash:
            raise ValueError(
                f"--attention-backend flash: Lorentz flash attention {obstacle}; drop the flag"
            )
        return obstacle is None

    def _obstacles(
        self, query: Tensor, value: Tensor, mask: Tensor | None
    ) -> Iterator[tuple[bool, str]]:
        lacking = dispatch.triton_lacks(query)
        yield lacking is not None, f"needs {lacking}"
        yield self._drops(), "has no --attention-dropout"
        yield self.cp_group.size() > 1, "has no --context-parallel-size"
        yield mask is not None, "takes no mask"
        yield isinstance(self.config.helm.curvature, Tensor), "takes a curvature as a number"
        width = max(query.shape[-1], value.shape[-1])
        yield query.dtype not in DTYPES, f"knows no {query.dtype}"
        yield width > MAX_WIDTH, f"takes heads up to {MAX_WIDTH} wide, not {width}"


def _flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: Tensor,
    c: float,
    packed: PackedSeqParams | None,
) -> Tensor:
    if packed is None:
        return flash_attention(q, k, v, tau, c).flatten(-2)
    bounds, longest = document_bounds(packed), packed.max_seqlen_q
    if packed.cu_seqlens_q_padded is not None:
        longest = None
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))
    return flash_attention(q, k, v, tau, c, bounds, longest).squeeze(1).flatten(-2)


def time_shift(v: Tensor, c: Scalar, group: Any) -> Tensor | None:
    """What to take off the times of v `[s, .., heads, d]` so that their sums round less.

    The kernel rounds sum_j p_j v_t to v's dtype, and m_t^2 - |m_s|^2 magnifies that error where few
    keys are attended. The weights of a softmax sum to 1, so a constant taken off all times of a
    head comes off the sum: the first token's time, which every query sees, leaves the kernel only
    differences to round.
    """
    if torch.finfo(v.dtype).bits >= 32:
        return None
    return from_first_rank(lorentz.time(v[:1].detach(), c), group)


@functools.cache
def lorentz_attention(kernel: type) -> type:
    """LorentzAttention over a backend's core attention."""
    return type(f"Lorentz{kernel.__name__}", (LorentzAttention,), {"kernel_class": kernel})
