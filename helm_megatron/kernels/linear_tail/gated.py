"""SwiGLU of y + time * w_t + b, the tail of a gated fc1."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.linear_tail import op as time_term


def gated(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """`geometry.tails.gated`; may overwrite y, so y must be a fresh matrix product."""
    return _Gated.apply(y, time, time_weight, bias)


class _Gated(torch.autograd.Function):
    """Saves y, or the sum in its place if that is no wider; the rest is computed again."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        if dispatch.uses_triton(y):
            ctx.save_for_backward(y, time, time_weight, bias)
            return dispatch.kernels("linear_tail.triton").forward(y, time, time_weight, bias)
        total = time_term.sum_in_place(y, time, time_weight, bias)
        ctx.save_for_backward(y, time, time_weight, bias)
        gate, up = total.chunk(2, dim=-1)
        return F.silu(gate).mul_(up).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        y, time, time_weight, bias = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        if dispatch.uses_triton(y):
            return dispatch.kernels("linear_tail.triton").backward(
                grad, y, time, time_weight, bias, needed
            )
        total = y
        if at_least_fp32(y) is not y:
            total = time_term.sum_in_place(y, time, time_weight, bias)
        by_sum = _swiglu_backward(grad.to(total.dtype), total)
        return by_sum.to(y.dtype), *time_term.gradients(by_sum, time, time_weight, needed)


def _swiglu_backward(grad: Tensor, total: Tensor) -> Tensor:
    """Gradient of the sum, both halves in one tensor as the matrix product wants it."""
    gate, up = total.chunk(2, dim=-1)
    out = torch.empty_like(total)
    by_gate, by_up = out.chunk(2, dim=-1)
    product = grad * up
    torch.ops.aten.silu_backward.grad_input(product, gate, grad_input=by_gate)
    torch.ops.aten.silu.out(gate, out=product)
    torch.mul(grad, product, out=by_up)
    return out
