"""The Lorentz residual with a backward of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import Scalar
from helm_megatron.kernels import dispatch


def residual(
    x: Tensor, f: Tensor, weight: Tensor, scale: Scalar, c: Scalar, c_x: Scalar | None = None
) -> Tensor:
    """`geometry.lorentz.residual` of x and f `[.., d]`, with weight and scale one number each.

    The twin itself computes what is rare: curvatures that are tensors, weights by token.
    """
    c_x = c if c_x is None else c_x
    if is_rare(x, f, weight, c, c_x):
        return lorentz.residual(x, f, weight, scale, c, c_x=c_x)
    return _Residual.apply(x, f, weight, scale, c, c_x)


def is_rare(x: Tensor, f: Tensor, weight: Tensor, c: Scalar, c_x: Scalar) -> bool:
    """Whether only the twin computes this: curvature tensors, weights by token, mixed types."""
    tensors = isinstance(c, Tensor) or isinstance(c_x, Tensor)
    return tensors or weight.numel() > 1 or x.dtype != f.dtype


class _Residual(torch.autograd.Function):
    """out = k (x + w f), k = scale sqrt(c / |n|), n = c_x + w^2 c - 2 w <x,f>.

    Beside x and f, which their linears and norms mostly keep anyway, it saves three numbers a
    token: both times and <x,f>.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Tensor, weight: Tensor, scale: Scalar, c: float, c_x: float
    ) -> Tensor:
        ctx.curvatures = c, c_x
        function = dispatch.implementation("residual", x).forward
        out, *tokens = function(x, f, weight, scale, c, c_x)
        learned = isinstance(scale, Tensor)
        ctx.scale = None if learned else scale
        ctx.save_for_backward(x, f, weight, scale if learned else None, *tokens)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple:
        x, f, weight, scale, *tokens = ctx.saved_tensors
        inputs = x, f, weight, ctx.scale if scale is None else scale, *ctx.curvatures
        function = dispatch.implementation("residual", x).backward
        d_x, d_f, *sums = function(d_out, *inputs, *tokens)
        return d_x, d_f, *of_parameters(weight, scale, *sums), None, None


def of_parameters(
    weight: Tensor, scale: Tensor | None, d_weight: Tensor, d_log_scale: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the weight and of a learned scale, in their shapes and dtypes."""
    d_weight = d_weight.view_as(weight).to(weight.dtype)
    if scale is None:
        return d_weight, None
    return d_weight, (d_log_scale / scale).view_as(scale).to(scale.dtype)
