"""Rotary embedding of heads (RoPE), alone or as a step of other functions."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels import dispatch

# Cosines and sines of the angles of each token and coordinate, contiguous `[s, 1, 1, width]`; the
# coordinate i turns with i + width / 2, further coordinates of a head do not turn.
Tables = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=2)
def tables(angles: Tensor, scale: float) -> Tables:
    """Of Megatron's `rotary_pos_emb` `[s, 1, 1, width]`, in at least fp32, times scale (YaRN's).

    Megatron hands the same tensor to every layer and step, so this is computed once; but anew in
    each layer that is recomputed, which gets another tensor.
    """
    with torch.inference_mode(False), torch.no_grad():
        wide = at_least_fp32(angles)
        return (wide.cos() * scale).contiguous(), (wide.sin() * scale).contiguous()


def turned(x: Tensor, rotary: Tables) -> Tensor:
    """x `[s, b, heads, d]` with its rotary embedding, in its dtype."""
    return _Turned.apply(x, *rotary)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.rotary = cos, sin
        return dispatch.implementation("augment", x).turned(x, ctx.rotary)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        turned = dispatch.implementation("augment", d_out).turned
        return turned(d_out, transposed(ctx.rotary)), None, None


def transposed(rotary: Tables) -> Tables:
    """Tables of the transposed map, which takes gradients back."""
    cos, sin = rotary
    return cos, -sin.roll(sin.shape[-1] // 2, dims=-1)
