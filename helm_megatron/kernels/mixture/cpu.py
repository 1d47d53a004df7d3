"""`mixture` in torch operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels.mixture.plain import EPS
from helm_megatron.kernels.norm2.cpu import norm


def forward(
    rows: Tensor, weights: Tensor, slots: Tensor, shared: Tensor | None, c: float
) -> tuple[Tensor, ...]:
    """The points; in at least fp32 the same again, and by token -<m,m>, the factor of m_s, m_t."""
    wide = at_least_fp32(rows)
    w = weights.to(wide.dtype)[slots]
    out = F.embedding_bag(slots, wide, per_sample_weights=w, mode="sum")
    m_t = (w * _time(wide, c).view(-1)[slots]).sum(-1, keepdim=True)
    if shared is not None:
        out += shared
        m_t += _time(shared, c)
    norm2 = m_t.square() - norm(out).square_()
    factor = norm2.abs().clamp_min(EPS).rsqrt_().mul_(c**0.5)
    out.mul_(factor)
    return out.to(rows.dtype), out, norm2, factor, m_t


def backward(
    d_out: Tensor,
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
    d_out = d_out.to(out.dtype)
    k = (d_out * out).sum(-1, keepdim=True).div_(factor).div_(norm2)
    k.masked_fill_(norm2.abs() < EPS, 0)
    d_space = torch.mul(d_out, factor).addcmul_(out, k)
    d_time = k.mul_(factor).mul_(m_t).neg_()
    d_shared = None
    if shared is not None:
        d_shared = torch.addcmul(d_space, shared, d_time / _time(shared, c)).to(shared.dtype)
    tokens = slots.view(-1).argsort() // slots.shape[1]
    d_rows, d_times = d_space.index_select(0, tokens), d_time.index_select(0, tokens)
    wide = at_least_fp32(rows)
    time, w = _time(wide, c), weights.to(wide.dtype).unsqueeze(-1)
    d_weights = (d_rows * wide).sum(-1) + (d_times * time).view(-1)
    d_rows.mul_(w).addcmul_(wide, d_times.mul_(w).div_(time))
    return d_rows.to(rows.dtype), d_weights.to(weights.dtype), d_shared


def _time(x: Tensor, c: float) -> Tensor:
    return norm(x).square_().add_(c).sqrt_()
