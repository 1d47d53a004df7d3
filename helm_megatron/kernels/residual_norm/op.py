"""The Lorentz residual and the norm that reads it, in one pass over the stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.residual import op as residual
from helm_megatron.kernels.residual_norm import plain


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
    """`residual_norm.plain`: the residual of x and f `[.., d]`, and the norm of that.

    As with `residual` the twin itself computes what is rare.
    """
    c_x = c if c_x is None else c_x
    if residual.is_rare(x, f, weight, c, c_x):
        return plain.residual_norm(x, f, weight, scale, norm_weight, norm_eps, c, c_x)
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
        function = dispatch.implementation("residual_norm", x).forward
        out, normed, *kept = function(x, f, weight, scale, c, c_x, norm_weight, norm_eps)
        learned = isinstance(scale, Tensor)
        ctx.scale = None if learned else scale
        ctx.save_for_backward(x, f, weight, scale if learned else None, norm_weight, *kept)
        return out, normed

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_normed: Tensor | None) -> tuple:
        x, f, weight, scale, norm_weight, *kept = ctx.saved_tensors
        inputs = x, f, weight, ctx.scale if scale is None else scale, *ctx.curvatures
        d_norm_weight = None
        if d_normed is None:
            if d_out is None:
                return (None,) * 8
            tokens = kept[:3]
            function = dispatch.implementation("residual", x).backward
            d_x, d_f, *sums = function(d_out, *inputs, *tokens)
        else:
            if d_out is None:
                d_out = torch.zeros_like(d_normed)
            function = dispatch.implementation("residual_norm", x).backward
            d_x, d_f, *sums, d_norm_weight = function(d_out, d_normed, *inputs, norm_weight, *kept)
            d_norm_weight = d_norm_weight.to(norm_weight.dtype)
        d_parameters = residual.of_parameters(weight, scale, *sums)
        return d_x, d_f, *d_parameters, d_norm_weight, None, None, None
