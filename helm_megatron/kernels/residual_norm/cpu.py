"""`residual_norm` in torch operations: of the two backward passes one sum is saved."""

from __future__ import annotations

from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar
from helm_megatron.kernels.residual import cpu as residual
from helm_megatron.kernels.rms_norm import cpu as rms_norm


def forward(
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    c: float,
    c_x: float,
    norm_weight: Tensor,
    norm_eps: float,
) -> tuple[Tensor, ...]:
    """out and its norm `[.., d]`; of every token both times, <x,f> and 1/rms; out to be kept."""
    out, *tokens = residual.forward(x, f, weight, scale, c, c_x)
    normed, rstd = rms_norm.forward(out, norm_weight, norm_eps)
    return out, normed, *tokens, rstd, out


def backward(
    d_out: Tensor,
    d_normed: Tensor,
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    c: float,
    c_x: float,
    norm_weight: Tensor,
    x_t: Tensor,
    f_t: Tensor,
    inner: Tensor,
    rstd: Tensor,
    out: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x, f, the weight, the scale's logarithm and the norm's weight."""
    total, d_norm_weight = rms_norm.backward(d_normed, out, norm_weight, rstd, d_out)
    inputs = x, f, weight, scale, c, c_x
    return *residual.backward(total, *inputs, x_t, f_t, inner), d_norm_weight
