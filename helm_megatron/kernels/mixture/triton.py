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
) -> Tensor:
    """Points `[tokens, d]`."""
    rows, slots = rows.contiguous(), slots.contiguous()
    out = rows.new_empty(len(slots), rows.shape[1])
    if len(slots):
        inputs = rows, weights, slots, rows if shared is None else shared.contiguous()
        _forward[(len(slots),)](*inputs, out, c, **_shape(rows, slots, shared))
    return out


def backward(
    grad: Tensor, rows: Tensor, weights: Tensor, slots: Tensor, shared: Tensor | None, c: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of rows, weights and shared points."""
    rows, slots = rows.contiguous(), slots.contiguous()
    by_rows, by_weights = torch.empty_like(rows), torch.empty_like(weights)
    by_shared = rows.new_empty(grad.shape) if shared is not None else None
    if len(slots):
        inputs = rows, weights, slots, rows if shared is None else shared.contiguous()
        outputs = by_rows, by_weights, rows if by_shared is None else by_shared
        shape = _shape(rows, slots, shared)
        _backward[(len(slots),)](*inputs, grad.contiguous(), *outputs, c, **shape)
    return by_rows, by_weights, by_shared


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
    rows, weights, slots, shared, grad, by_rows, by_weights, by_shared, c, d, K: tl.constexpr,
    SHARED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token, column = tl.program_id(0), tl.arange(0, WIDTH)
    inside = column < d
    space, time, norm2 = _sum(rows, weights, slots, shared, token, column, d, c, K, SHARED)
    g = _load(grad, token, column, d)
    clamped = tl.abs(norm2) < EPS
    factor = tl.sqrt(c / tl.maximum(tl.abs(norm2), EPS))
    k = tl.where(clamped, 0.0, tl.sum(g * space, 0) * factor / tl.where(clamped, 1.0, norm2))
    by_space = factor * g + k * space
    by_time = -k * time
    if SHARED:
        y = _load(shared, token, column, d)
        by_y = by_space + by_time / tl.sqrt(tl.sum(y * y, 0) + c) * y
        place = token.to(tl.int64) * d + column
        tl.store(by_shared + place, by_y.to(by_shared.dtype.element_ty), inside)
    for j in range(K):
        slot = tl.load(slots + token.to(tl.int64) * K + j)
        y = _load(rows, slot, column, d)
        w = tl.load(weights + slot).to(tl.float32)
        t = tl.sqrt(tl.sum(y * y, 0) + c)
        by_y = w * (by_space + by_time / t * y)
        place = slot.to(tl.int64) * d + column
        tl.store(by_rows + place, by_y.to(by_rows.dtype.element_ty), inside)
        by_w = tl.sum(by_space * y, 0) + by_time * t
        tl.store(by_weights + slot, by_w.to(by_weights.dtype.element_ty))
