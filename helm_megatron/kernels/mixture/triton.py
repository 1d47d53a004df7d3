"""Triton kernels of `mixture`: one program a token, which reads its rows and writes its point."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from helm_megatron.kernels.mixture import plain

EPS: tl.constexpr = tl.constexpr(plain.EPS)


def forward(
    rows: Tensor, weights: Tensor, slots: Tensor, shared: Tensor | None, c: float
) -> tuple[Tensor]:
    """Points `[tokens, d]`; nothing is kept for the backward pass."""
    rows, slots = rows.contiguous(), slots.contiguous()
    out = rows.new_empty(len(slots), rows.shape[1])
    if len(slots):
        inputs = rows, weights, slots, rows if shared is None else shared.contiguous()
        _forward[(len(slots),)](*inputs, out, c, **_shape(rows, slots, shared))
    return (out,)


def backward(
    d_out: Tensor, rows: Tensor, weights: Tensor, slots: Tensor, shared: Tensor | None, c: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of rows, weights and shared points."""
    rows, slots = rows.contiguous(), slots.contiguous()
    d_rows, d_weights = torch.empty_like(rows), torch.empty_like(weights)
    d_shared = rows.new_empty(d_out.shape) if shared is not None else None
    if len(slots):
        inputs = rows, weights, slots, rows if shared is None else shared.contiguous()
        outputs = d_rows, d_weights, rows if d_shared is None else d_shared
        shape = _shape(rows, slots, shared)
        _backward[(len(slots),)](*inputs, d_out.contiguous(), *outputs, c, **shape)
    return d_rows, d_weights, d_shared


def _shape(rows: Tensor, slots: Tensor, shared: Tensor | None) -> dict[str, Any]:
    width = triton.next_power_of_2(rows.shape[1])
    return {
        "d": rows.shape[1],
        "K": slots.shape[1],
        "SHARED": shared is not None,
        "WIDTH": width,
        "num_warps": min(max(width // 256, 1), 16),
    }


@triton.jit
def _load(points, index, column, d):
    place = index.to(tl.int64) * d + column
    return tl.load(points + place, column < d, other=0.0).to(tl.float32)


@triton.jit
def _sum(
    rows, weights, slots, shared, token, column, d, c, K: tl.constexpr, SHARED: tl.constexpr
):  # fmt: skip
    """The ambient sum of a token's points: m_s, m_t and -<m,m>."""
    space = tl.zeros_like(column).to(tl.float32)
    time = 0.0
    if SHARED:
        space = _load(shared, token, column, d)
        time = tl.sqrt(tl.sum(space * space, 0) + c)
    for k in range(K):
        slot = tl.load(slots + token.to(tl.int64) * K + k)
        y = _load(rows, slot, column, d)
        w = tl.load(weights + slot).to(tl.float32)
        space += w * y
        time += w * tl.sqrt(tl.sum(y * y, 0) + c)
    return space, time, time * time - tl.sum(space * space, 0)


@triton.jit
def _forward(
    rows, weights, slots, shared, out, c, d, K: tl.constexpr, SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    token, column = tl.program_id(0), tl.arange(0, WIDTH)
    space, _, norm2 = _sum(rows, weights, slots, shared, token, column, d, c, K, SHARED)
    space *= tl.sqrt(c / tl.maximum(tl.abs(norm2), EPS))
    place = token.to(tl.int64) * d + column
    tl.store(out + place, space.to(out.dtype.element_ty), column < d)


@triton.jit
def _backward(
    rows, weights, slots, shared, d_out, d_rows, d_weights, d_shared, c, d, K: tl.constexpr,
    SHARED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token, column = tl.program_id(0), tl.arange(0, WIDTH)
    inside = column < d
    space, time, norm2 = _sum(rows, weights, slots, shared, token, column, d, c, K, SHARED)
    d_o = _load(d_out, token, column, d)
    clamped = tl.abs(norm2) < EPS
    factor = tl.sqrt(c / tl.maximum(tl.abs(norm2), EPS))
    k = tl.where(clamped, 0.0, tl.sum(d_o * space, 0) * factor / tl.where(clamped, 1.0, norm2))
    d_space = factor * d_o + k * space
    d_time = -k * time
    if SHARED:
        y = _load(shared, token, column, d)
        d_y = d_space + d_time / tl.sqrt(tl.sum(y * y, 0) + c) * y
        place = token.to(tl.int64) * d + column
        tl.store(d_shared + place, d_y.to(d_shared.dtype.element_ty), inside)
    for j in range(K):
        slot = tl.load(slots + token.to(tl.int64) * K + j)
        y = _load(rows, slot, column, d)
        w = tl.load(weights + slot).to(tl.float32)
        t = tl.sqrt(tl.sum(y * y, 0) + c)
        d_y = w * (d_space + d_time / t * y)
        place = slot.to(tl.int64) * d + column
        tl.store(d_rows + place, d_y.to(d_rows.dtype.element_ty), inside)
        d_w = tl.sum(d_space * y, 0) + d_time * t
        tl.store(d_weights + slot, d_w.to(d_weights.dtype.element_ty))
