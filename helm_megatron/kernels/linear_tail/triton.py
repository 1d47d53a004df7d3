"""Triton kernels of `gated`: y is read once and h written; the sum is never stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helm_megatron.kernels.common.rows import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    PartialSums,
    rows_of,
    tiles,
)


def forward(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """h `[.., f]` of y `[.., 2 f]`."""
    matrix = rows_of(y)
    rows, f = matrix.shape[0], matrix.shape[1] // 2
    out = torch.empty((*y.shape[:-1], f), dtype=y.dtype, device=y.device)
    if rows:
        _forward[tiles(rows, f)](
            matrix,
            time.contiguous(),
            time_weight,
            time_weight if bias is None else bias,
            out,
            rows,
            f,
            bias is not None,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
    return out


def backward(
    grad: Tensor,
    y: Tensor,
    time: Tensor,
    time_weight: Tensor,
    bias: Tensor | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of y, and where needed of time, time weight and bias."""
    matrix = rows_of(y)
    rows, f = matrix.shape[0], matrix.shape[1] // 2
    by_y = torch.empty_like(matrix)
    sums = PartialSums(y, rows, f, halves=2)
    if rows:
        _backward[sums.grid](
            rows_of(grad),
            matrix,
            time.contiguous(),
            time_weight,
            time_weight if bias is None else bias,
            by_y,
            sums.of_rows,
            sums.of_columns,
            rows,
            f,
            sums.rows_per_group,
            bias is not None,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
    return by_y.view(y.shape), *sums.gradients(time, time_weight, needed)


@triton.jit
def _half(y, place, mask, t, weight, bias, column, inside, BIAS: tl.constexpr):
    """One half of the sum of a tile, and its time weights."""
    w = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    z = tl.load(y + place, mask, other=0.0).to(tl.float32) + t[:, None] * w[None, :]
    if BIAS:
        z += tl.load(bias + column, inside, other=0.0).to(tl.float32)[None, :]
    return z, w


@triton.jit
def _forward(
    y, time, weight, bias, out, rows, f, BIAS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < f
    mask = (row < rows)[:, None] & inside[None, :]
    t = tl.load(time + row, row < rows, other=0.0).to(tl.float32)
    place = row[:, None] * (2 * f) + column[None, :]
    gate, _ = _half(y, place, mask, t, weight, bias, column, inside, BIAS)
    up, _ = _half(y, place + f, mask, t, weight, bias, column + f, inside, BIAS)
    h = gate * tl.sigmoid(gate) * up
    tl.store(out + row[:, None] * f + column[None, :], h.to(out.dtype.element_ty), mask)


@triton.jit
def _backward(
    grad, y, time, weight, bias, by_y, of_rows, of_columns, rows, f, rows_per_group,
    BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    group, block = tl.program_id(0), tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < f
    weight_gate = tl.zeros([COLUMNS], tl.float32)
    weight_up = tl.zeros([COLUMNS], tl.float32)
    bias_gate = tl.zeros([COLUMNS], tl.float32)
    bias_up = tl.zeros([COLUMNS], tl.float32)
    first = group.to(tl.int64) * rows_per_group
    for start in range(0, rows_per_group, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        t = tl.load(time + row, row < rows, other=0.0).to(tl.float32)
        place = row[:, None] * (2 * f) + column[None, :]
        gate, w_gate = _half(y, place, mask, t, weight, bias, column, inside, BIAS)
        up, w_up = _half(y, place + f, mask, t, weight, bias, column + f, inside, BIAS)
        g = tl.load(grad + row[:, None] * f + column[None, :], mask, other=0.0).to(tl.float32)
        s = tl.sigmoid(gate)
        by_gate = g * up * s * (1.0 + gate * (1.0 - s))
        by_up = g * gate * s
        tl.store(by_y + place, by_gate.to(by_y.dtype.element_ty), mask)
        tl.store(by_y + place + f, by_up.to(by_y.dtype.element_ty), mask)
        by_time = tl.sum(by_gate * w_gate[None, :] + by_up * w_up[None, :], 1)
        tl.store(of_rows + block * rows + row, by_time, row < rows)
        weight_gate += tl.sum(by_gate * t[:, None], 0)
        weight_up += tl.sum(by_up * t[:, None], 0)
        bias_gate += tl.sum(by_gate, 0)
        bias_up += tl.sum(by_up, 0)
    place = of_columns + group * (2 * f) + column
    tl.store(place, weight_gate, inside)
    tl.store(place + f, weight_up, inside)
    place += tl.num_programs(0) * (2 * f)
    tl.store(place, bias_gate, inside)
    tl.store(place + f, bias_up, inside)
