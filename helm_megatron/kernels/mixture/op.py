"""The centroid of each token's experts: weights, times, sums and norm in one function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.mixture import plain


def mixture(
    rows: Tensor, weights: Tensor, slots: Tensor, shared: Tensor | None, c: float | Tensor
) -> Tensor:
    """`mixture.plain`, for slots that name every row once.

    The twin itself computes what is rare, a curvature that is a tensor.
    """
    if isinstance(c, Tensor):
        return plain.mixture(rows, weights, slots, shared, c)
    return _Mixture.apply(rows, weights, slots, shared, c)


class _Mixture(torch.autograd.Function):
    """In Triton the sums are computed again in backward; else they are kept, as the output."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weights: Tensor,
        slots: Tensor,
        shared: Tensor | None,
        c: float,
    ) -> Tensor:
        ctx.c = c
        inputs = rows, weights, slots, shared
        out, *kept = dispatch.implementation("mixture", rows).forward(*inputs, c)
        ctx.save_for_backward(*inputs, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple:
        rows, weights, slots, shared, *kept = ctx.saved_tensors
        function = dispatch.implementation("mixture", rows).backward
        d_rows, d_weights, d_shared = function(d_out, rows, weights, slots, shared, ctx.c, *kept)
        return d_rows, d_weights, None, d_shared, None
