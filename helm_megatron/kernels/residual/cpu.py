"""`residual` in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import RESIDUAL_EPS, Scalar, at_least_fp32
from helm_megatron.kernels.norm2.cpu import norm


def forward(
    x: Tensor, f: Tensor, weight: Tensor, scale: Scalar, c: float, c_x: float
) -> tuple[Tensor, ...]:
    """out `[.., d]`, and of every token both times and <x,f>, `[.., 1]`."""
    wide_x, wide_f = at_least_fp32(x), at_least_fp32(f)
    w = weight.to(wide_x.dtype)
    x_t = norm(wide_x).square_().add_(c_x).sqrt_()
    f_t = norm(wide_f).square_().add_(c).sqrt_()
    inner = (wide_x * wide_f).sum(-1, keepdim=True).addcmul_(x_t, f_t, value=-1)
    _, k = _factors(inner, w, scale, c, c_x)
    out = torch.addcmul(wide_x, wide_f, w).mul_(k)
    return out.to(x.dtype), x_t, f_t, inner


def backward(
    d_out: Tensor,
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    c: float,
    c_x: float,
    x_t: Tensor,
    f_t: Tensor,
    inner: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x, f, the weight and the scale's logarithm."""
    d_out, wide_x, wide_f = at_least_fp32(d_out), at_least_fp32(x), at_least_fp32(f)
    w = weight.to(d_out.dtype)
    n, k = _factors(inner, w, scale, c, c_x)
    along_f = (d_out * wide_f).sum(-1, keepdim=True)
    along_z = (d_out * wide_x).sum(-1, keepdim=True) + w * along_f
    d_n = torch.where(n.abs() < RESIDUAL_EPS, 0.0, along_z * k / (-2 * n))
    d_inner = -2 * w * d_n
    d_x = (d_out * k).addcmul_(wide_f, d_inner).addcmul_(wide_x, -d_inner * f_t / x_t)
    d_f = (d_out * (k * w)).addcmul_(wide_x, d_inner).addcmul_(wide_f, -d_inner * x_t / f_t)
    d_weight = (k * along_f + 2 * d_n * (c * w - inner)).sum()
    return d_x.to(x.dtype), d_f.to(f.dtype), d_weight, (along_z * k).sum()


def _factors(
    inner: Tensor, weight: Tensor, scale: Scalar, c: float, c_x: float
) -> tuple[Tensor, Tensor]:
    """n and k of the tokens, given <x,f>."""
    n = c_x + c * weight * weight - 2 * weight * inner
    return n, n.abs().clamp_min(RESIDUAL_EPS).rsqrt() * (scale * c**0.5)
