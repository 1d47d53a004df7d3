"""`rms_norm` in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels.norm2.cpu import norm


def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x, and of every token 1 / its root mean square in at least fp32."""
    wide = at_least_fp32(x)
    rstd = norm(wide).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * rstd).mul_(weight).to(x.dtype), rstd


def backward(
    d_out: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, plus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of x, with another one added, and of the weight, both in at least fp32."""
    d_out, wide = at_least_fp32(d_out), at_least_fp32(x)
    w = weight.to(d_out.dtype)
    products = d_out * wide
    inner = torch.matmul(products, w).unsqueeze(-1)
    d_weight = torch.mv(products.flatten(0, -2).t(), rstd.flatten())
    through_mean = inner * rstd**3 / -x.shape[-1]
    scaled = torch.mul(d_out, rstd, out=products)
    if plus is None:
        return (wide * through_mean).addcmul_(scaled, w), d_weight
    return torch.addcmul(at_least_fp32(plus), wide, through_mean).addcmul_(scaled, w), d_weight
