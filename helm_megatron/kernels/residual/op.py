"""The Lorentz residual with a backward of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import Scalar, at_least_fp32
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.norm2.op import norm

# Clamp of |<z,z>|, as in the twin.
EPS = 1e-4


def residual(
    x: Tensor, f: Tensor, weight: Tensor, scale: Scalar, c: Scalar, c_x: Scalar | None = None
) -> Tensor:
    """`geometry.lorentz.residual` of x and f `[.., d]`, with weight and scale one number each.

    The twin itself computes what is rare: curvatures that are tensors, weights by token.
    """
    c_x = c if c_x is None else c_x
    if is_rare(x, f, weight, c, c_x):
        return lorentz.residual(x, f, weight, scale, c, EPS, c_x)
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
        if dispatch.uses_triton(x):
            function = dispatch.kernels("residual.triton").forward
            out, *tokens = function(x, f, weight, scale, c, c_x, EPS)
        else:
            out, *tokens = forward(x, f, weight, scale, c, c_x)
        learned = isinstance(scale, Tensor)
        ctx.scale = None if learned else scale
        ctx.save_for_backward(x, f, weight, scale if learned else None, *tokens)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, f, weight, scale, *tokens = ctx.saved_tensors
        inputs = grad, x, f, weight, ctx.scale if scale is None else scale
        by_x, by_f, *sums = gradients(*inputs, *tokens, *ctx.curvatures)
        return by_x, by_f, *of_parameters(weight, scale, *sums), None, None


def gradients(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of x, f, the weight and the scale's logarithm; arguments of `backward`."""
    if dispatch.uses_triton(x):
        return dispatch.kernels("residual.triton").backward(grad, x, *rest, EPS)
    return backward(grad, x, *rest)


def of_parameters(
    weight: Tensor, scale: Tensor | None, by_weight: Tensor, by_log_scale: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the weight and of a learned scale, as theirs."""
    by_weight = by_weight.view_as(weight).to(weight.dtype)
    if scale is None:
        return by_weight, None
    return by_weight, (by_log_scale / scale).view_as(scale).to(scale.dtype)


def factors(
    inner: Tensor, weight: Tensor, scale: Scalar, c: float, c_x: float
) -> tuple[Tensor, Tensor]:
    """n and k of the tokens, given <x,f>."""
    n = c_x + c * weight * weight - 2 * weight * inner
    return n, n.abs().clamp_min(EPS).rsqrt() * (scale * c**0.5)


def forward(
    x: Tensor, f: Tensor, weight: Tensor, scale: Scalar, c: float, c_x: float
) -> tuple[Tensor, ...]:
    """out `[.., d]`, and of every token both times and <x,f>, `[.., 1]`."""
    wide_x, wide_f = at_least_fp32(x), at_least_fp32(f)
    w = weight.to(wide_x.dtype)
    x_t = norm(wide_x).square_().add_(c_x).sqrt_()
    f_t = norm(wide_f).square_().add_(c).sqrt_()
    inner = (wide_x * wide_f).sum(-1, keepdim=True).addcmul_(x_t, f_t, value=-1)
    _, k = factors(inner, w, scale, c, c_x)
    out = torch.addcmul(wide_x, wide_f, w).mul_(k)
    return out.to(x.dtype), x_t, f_t, inner


def backward(
    grad: Tensor,
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    x_t: Tensor,
    f_t: Tensor,
    inner: Tensor,
    c: float,
    c_x: float,
) -> tuple[Tensor, ...]:
    """Gradients of x, f, the weight and the scale's logarithm."""
    g, wide_x, wide_f = at_least_fp32(grad), at_least_fp32(x), at_least_fp32(f)
    w = weight.to(g.dtype)
    n, k = factors(inner, w, scale, c, c_x)
    g_f = (g * wide_f).sum(-1, keepdim=True)
    g_z = (g * wide_x).sum(-1, keepdim=True) + w * g_f
    by_n = torch.where(n.abs() < EPS, 0.0, g_z * k / (-2 * n))
    by_inner = -2 * w * by_n
    by_x = (g * k).addcmul_(wide_f, by_inner).addcmul_(wide_x, -by_inner * f_t / x_t)
    by_f = (g * (k * w)).addcmul_(wide_x, by_inner).addcmul_(wide_f, -by_inner * x_t / f_t)
    by_weight = (k * g_f + 2 * by_n * (c * w - inner)).sum()
    return by_x.to(x.dtype), by_f.to(f.dtype), by_weight, (g_z * k).sum()
