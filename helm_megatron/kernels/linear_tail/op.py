"""y + time * w_t + b, the tail of a Lorentz linear: a pass over y in place, two in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels import dispatch


def add_time_term(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """`geometry.tails.add_time_term`; overwrites y.

    y must be a fresh matrix product that nothing else uses: an out-of-place sum costs as much as
    the product itself where y is the logits.
    """
    return _TimeTerm.apply(y, time, time_weight, bias)


def sum_in_place(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum in at least fp32, outside autograd: in y's place, unless y is narrower."""
    out = at_least_fp32(y)
    out.addcmul_(time.to(out.dtype), time_weight.to(out.dtype))
    return out if bias is None else out.add_(bias)


def gradients(
    grad: Tensor, time: Tensor, time_weight: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of time, time weight and bias, where needed, given that of their sum.

    Matrix-vector products: no tensor of grad's size is made.
    """
    rows = at_least_fp32(grad).reshape(-1, grad.shape[-1])
    by_time = by_weight = by_bias = None
    if needed[0]:
        by_time = torch.mv(rows, time_weight.to(rows.dtype)).view_as(time)
    if needed[1]:
        by_weight = torch.mv(rows.t(), time.reshape(-1)).to(time_weight.dtype)
    if needed[2]:
        by_bias = rows.sum(0).to(time_weight.dtype)
    return by_time, by_weight, by_bias


class _TimeTerm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(time, time_weight)
        if dispatch.uses_triton(y):
            dispatch.kernels("linear_tail.triton_time_term").add_in_place(
                y, time, time_weight, bias
            )
        else:
            total = sum_in_place(y, time, time_weight, bias)
            if total is not y:
                y.copy_(total)
        # A view made by another function (Megatron's reductions return their input) may not be
        # marked; that is no loss, as no node before this one has saved y.
        if not y._is_view():
            ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        time, time_weight = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        if dispatch.uses_triton(grad):
            return grad, *dispatch.kernels("linear_tail.triton_time_term").gradients(
                grad, time, time_weight, needed
            )
        return grad, *gradients(grad, time, time_weight, needed)
