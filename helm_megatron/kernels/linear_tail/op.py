"""y + time * w_t + b, the tail of a Lorentz linear, alone or with SwiGLU of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.kernels import dispatch


def add_time_term(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear_tail.plain`; overwrites y: a pass over it in place, two in backward.

    y must be a fresh matrix product that nothing else uses: an out-of-place sum costs as much as
    the product itself where y is the logits.
    """
    return _TimeTerm.apply(y, time, time_weight, bias)


def gated(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear_tail.plain`; may overwrite y, so y must be a fresh matrix product."""
    return _Gated.apply(y, time, time_weight, bias)


class _TimeTerm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(time, time_weight)
        dispatch.implementation("linear_tail", y).add_time_term_(y, time, time_weight, bias)
        # A view made by another function (Megatron's reductions return their input) may not be
        # marked; that is no loss, as no node before this one has saved y.
        if not y._is_view():
            ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple:
        time, time_weight = ctx.saved_tensors
        function = dispatch.implementation("linear_tail", d_out).time_term_backward
        return d_out, *function(d_out, time, time_weight, ctx.needs_input_grad[1:])


class _Gated(torch.autograd.Function):
    """Saves y, or the sum in its place if that is no wider; the rest is computed again."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        out = dispatch.implementation("linear_tail", y).gated(y, time, time_weight, bias)
        # As y may be a view (Transformer Engine's linear returns one) that was just overwritten,
        # which autograd would refuse to give back.
        ctx.save_for_backward(y.detach(), time, time_weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple:
        y, *rest = ctx.saved_tensors
        function = dispatch.implementation("linear_tail", y).gated_backward
        return function(d_out, y, *rest, ctx.needs_input_grad[1:])
