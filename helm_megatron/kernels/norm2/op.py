"""The squared norm of points, from which their times are taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar
from helm_megatron.kernels import dispatch


def norm2(x: Tensor) -> Tensor:
    """|x|^2 of x `[.., d]` as `[.., 1]`, in at least fp32."""
    return _Norm2.apply(x)


def time(x: Tensor, c: Scalar) -> Tensor:
    """`geometry.lorentz.time`: sqrt(|x|^2 + c) of x `[.., d]`, as `[.., 1]`."""
    square = norm2(x)
    return (square + (c.to(square.dtype) if isinstance(c, Tensor) else c)).sqrt()


class _Norm2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return dispatch.implementation("norm2", x).forward(x)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return dispatch.implementation("norm2", x).backward(d_out, x)
