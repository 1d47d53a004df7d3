"""The Lorentz residual and the norm that reads it, in one pass over the stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import Scalar
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.residual import op as residual
from helm_megatron.kernels.rms_norm import op as rms_norm
from helm_megatron.kernels.rms_norm import plain as norm


def residual_norm(
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    norm_weight: Tensor,
    norm_eps: float,
    c: Scalar,
    c_x: Scalar | None = None,
) -> tuple[Tensor, Tensor]:
    """`geometry.lorentz.residual` of x and f `[.., d]`, and `geometry.norm.rms_norm` of it.

    As with `residual` the twins themselves compute what is rare.
    """
    c_x = c if c_x is None else c_x
    if residual.is_rare(x, f, weight, c, c_x):
        out = lorentz.residual(x, f, weight, scale, c, residual.EPS, c_x)
        return out, norm.rms_norm(out, norm_weight, norm_eps)
    return _ResidualNorm.apply(x, f, weight, scale, norm_weight, norm_eps, c, c_x)


class _ResidualNorm(torch.autograd.Function):
    """The norm is of the rounded residual, as if it had been read back.

    Saved is what `residual` saves and one number a token more. The torch version also saves the
    residual, which the next one saves anyway; Triton computes it again from the x and f at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        f: Tensor,
        weight: Tensor,
        scale: Scalar,
        norm_weight: Tensor,
        norm_eps: float,
        c: float,
        c_x: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.curvatures = c, c_x
        inputs = x, f, weight, scale, c, c_x
        kept = None
        if dispatch.uses_triton(x):
            forward = dispatch.kernels("residual_norm.triton").forward
            out, normed, *tokens = forward(*inputs, norm_weight, norm_eps, residual.EPS)
        else:
            out, *tokens = residual.forward(*inputs)
            normed, rstd = rms_norm.forward(out, norm_weight, norm_eps)
            kept = out
            tokens.append(rstd)
        learned = isinstance(scale, Tensor)
        ctx.scale = None if learned else scale
        ctx.save_for_backward(x, f, weight, scale if learned else None, norm_weight, kept, *tokens)
        return out, normed

    @staticmethod
    def backward(ctx: Any, by_out: Tensor | None, by_normed: Tensor | None) -> tuple:
        x, f, weight, scale, norm_weight, out, *tokens, rstd = ctx.saved_tensors
        inputs = x, f, weight, ctx.scale if scale is None else scale, *tokens, *ctx.curvatures
        by_norm_weight = None
        if by_normed is None:
            if by_out is None:
                return (None,) * 8
            by_x, by_f, *sums = residual.gradients(by_out, *inputs)
        else:
            if by_out is None:
                by_out = torch.zeros_like(by_normed)
            grads = by_out, by_normed
            by_x, by_f, *sums, by_norm_weight = _gradients(*grads, out, norm_weight, rstd, inputs)
            by_norm_weight = by_norm_weight.to(norm_weight.dtype)
        by_parameters = residual.of_parameters(weight, scale, *sums)
        return by_x, by_f, *by_parameters, by_norm_weight, None, None, None


def _gradients(
    by_out: Tensor,
    by_normed: Tensor,
    out: Tensor,
    norm_weight: Tensor,
    rstd: Tensor,
    inputs: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """Gradients of x, f, the weight, the scale's logarithm and the norm's weight."""
    if dispatch.uses_triton(by_out):
        backward = dispatch.kernels("residual_norm.triton").backward
        return backward(by_out, *inputs, by_normed, norm_weight, rstd, residual.EPS)
    total, by_norm_weight = rms_norm.backward(by_normed, out, norm_weight, rstd, by_out)
    return *residual.backward(total, *inputs), by_norm_weight
