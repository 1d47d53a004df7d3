"""The squared norm of points, from which their times are taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar, at_least_fp32
from helm_megatron.kernels import dispatch


def norm2(x: Tensor) -> Tensor:
    """|x|^2 of x `[.., d]` as `[.., 1]`, in at least fp32."""
    return _Norm2.apply(x)


def time(x: Tensor, c: Scalar) -> Tensor:
    """`geometry.lorentz.time`: sqrt(|x|^2 + c) of x `[.., d]`, as `[.., 1]`."""
    square = norm2(x)
    return (square + (c.to(square.dtype) if isinstance(c, Tensor) else c)).sqrt()


def norm(x: Tensor) -> Tensor:
    """|x| of x `[.., d]` as `[.., 1]`: one reduction, without a tensor of squares."""
    return torch.linalg.vector_norm(at_least_fp32(x), dim=-1, keepdim=True)


class _Norm2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if dispatch.uses_triton(x):
            return dispatch.kernels("norm2.triton").forward(x)
        return norm(x).square_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if dispatch.uses_triton(x):
            return dispatch.kernels("norm2.triton").backward(x, grad)
        return (at_least_fp32(x) * (2 * grad)).to(x.dtype)
