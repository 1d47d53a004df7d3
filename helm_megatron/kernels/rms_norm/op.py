"""RMSNorm with a backward of its own: on CPUs torch's is slow, and keeps more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels.norm2.op import norm
from helm_megatron.kernels.rms_norm import plain


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`geometry.norm.rms_norm` of x `[.., d]`; elsewhere than on CPUs that itself."""
    if x.device.type != "cpu":
        return plain.rms_norm(x, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """Saves x and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, rstd = forward(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        by_x, by_weight = backward(grad, x, weight, rstd)
        return by_x.to(x.dtype), by_weight.to(weight.dtype), None


def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x, and of every token 1 / its root mean square in at least fp32."""
    wide = at_least_fp32(x)
    rstd = norm(wide).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * rstd).mul_(weight).to(x.dtype), rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, plus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of x, with another one added, and of the weight, both in at least fp32."""
    g, wide = at_least_fp32(grad), at_least_fp32(x)
    w = weight.to(g.dtype)
    products = g * wide
    inner = torch.matmul(products, w).unsqueeze(-1)
    by_weight = torch.mv(products.flatten(0, -2).t(), rstd.flatten())
    through_mean = inner * rstd**3 / -x.shape[-1]
    scaled = torch.mul(g, rstd, out=products)
    if plus is None:
        return (wide * through_mean).addcmul_(scaled, w), by_weight
    return torch.addcmul(at_least_fp32(plus), wide, through_mean).addcmul_(scaled, w), by_weight
