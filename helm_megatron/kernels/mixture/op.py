"""The centroid of each token's experts: weights, times, sums and norm in one function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.mixture import plain
from helm_megatron.kernels.norm2.op import norm


def mixture(
    rows: Tensor, weights: Tensor, slots: Tensor, shared: Tensor | None, c: float | Tensor
) -> Tensor:
    """`geometry.mixture.mixture`, for slots that name every row once.

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
        if dispatch.uses_triton(rows):
            ctx.save_for_backward(rows, weights, slots, shared)
            return dispatch.kernels("mixture.triton").forward(rows, weights, slots, shared, c)
        out, *kept = _forward(rows, weights, slots, shared, c)
        ctx.save_for_backward(rows, weights, slots, shared, out, *kept)
        return out.to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        rows, weights, slots, shared, *kept = ctx.saved_tensors
        if kept:
            by_rows, by_weights, by_shared = _backward(
                grad, rows, weights, slots, shared, ctx.c, *kept
            )
        else:
            by_rows, by_weights, by_shared = dispatch.kernels("mixture.triton").backward(
                grad, rows, weights, slots, shared, ctx.c
            )
        return by_rows, by_weights, None, by_shared, None


def _time(x: Tensor, c: float) -> Tensor:
    return norm(x).square_().add_(c).sqrt_()


def _forward(
    rows: Tensor, weights: Tensor, slots: Tensor, shared: Tensor | None, c: float
) -> tuple[Tensor, ...]:
    """The points, and by token -<m,m>, the factor of m_s and m_t; in at least fp32."""
    wide = at_least_fp32(rows)
    w = weights.to(wide.dtype)[slots]
    out = F.embedding_bag(slots, wide, per_sample_weights=w, mode="sum")
    m_t = (w * _time(wide, c).view(-1)[slots]).sum(-1, keepdim=True)
    if shared is not None:
        out += shared
        m_t += _time(shared, c)
    norm2 = m_t.square() - norm(out).square_()
    factor = norm2.abs().clamp_min(plain.EPS).rsqrt_().mul_(c**0.5)
    return out.mul_(factor), norm2, factor, m_t


def _backward(
    grad: Tensor,
    rows: Tensor,
    weights: Tensor,
    slots: Tensor,
    shared: Tensor | None,
    c: float,
    out: Tensor,
    norm2: Tensor,
    factor: Tensor,
    m_t: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of rows, weights and shared points."""
    grad = grad.to(out.dtype)
    k = (grad * out).sum(-1, keepdim=True).div_(factor).div_(norm2)
    k.masked_fill_(norm2.abs() < plain.EPS, 0)
    by_space = torch.mul(grad, factor).addcmul_(out, k)
    by_time = k.mul_(factor).mul_(m_t).neg_()
    by_shared = None
    if shared is not None:
        by_shared = torch.addcmul(by_space, shared, by_time / _time(shared, c)).to(shared.dtype)
    tokens = slots.view(-1).argsort() // slots.shape[1]
    by_rows, by_times = by_space.index_select(0, tokens), by_time.index_select(0, tokens)
    wide = at_least_fp32(rows)
    time, w = _time(wide, c), weights.to(wide.dtype).unsqueeze(-1)
    by_weights = (by_rows * wide).sum(-1) + (by_times * time).view(-1)
    by_rows.mul_(w).addcmul_(wide, by_times.mul_(w).div_(time))
    return by_rows.to(rows.dtype), by_weights.to(weights.dtype), by_shared
