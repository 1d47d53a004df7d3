"""Rotary embedding of heads (RoPE), alone or as a step of other functions."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar, at_least_fp32
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
        return _turned(x, ctx.rotary)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _turned(grad, transposed(ctx.rotary)), None, None


def _turned(x: Tensor, rotary: Tables) -> Tensor:
    if dispatch.uses_triton(x):
        return dispatch.kernels("augment.triton").turned(x, rotary)
    wide = at_least_fp32(x)
    out = torch.empty_like(wide, memory_format=torch.contiguous_format)
    return rotate(wide, rotary, 1.0, out).to(x.dtype)


def rotate(x: Tensor, rotary: Tables, factor: Scalar, out: Tensor) -> Tensor:
    """Fill out with the turned x, both `[s, b, heads, d]` in at least fp32, times factor."""
    width = rotary[0].shape[-1]
    (cos_1, cos_2), (sin_1, sin_2) = ((table * factor).chunk(2, dim=-1) for table in rotary)
    (x_1, x_2), (out_1, out_2) = (y[..., :width].chunk(2, dim=-1) for y in (x, out))
    torch.mul(x_1, cos_1, out=out_1).addcmul_(x_2, sin_1, value=-1)
    torch.mul(x_2, cos_2, out=out_2).addcmul_(x_1, sin_2)
    if width < x.shape[-1]:
        torch.mul(x[..., width:], factor, out=out[..., width:])
    return out


def transposed(rotary: Tables) -> Tables:
    """Tables of the transposed map, which takes gradients back."""
    cos, sin = rotary
    return cos, -sin.roll(sin.shape[-1] // 2, dims=-1)
