"""Triton kernels of `linear_tail`.

Of `add_time_term` one pass over y, and one over its gradient. `gated` reads y once and writes h;
the sum is never stored.
"""

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


def add_time_term_(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> None:
    """y `[.., out]` += time `[.., 1]` * time_weight `[out]` + bias `[out]`, summed in fp32."""
    matrix = rows_of(y)
    rows, columns = matrix.shape
    if rows:
        _add_time_term[tiles(rows, columns)](
            matrix,
            time.contiguous(),
            time_weight,
            time_weight if bias is None else bias,
            rows,
            columns,
            bias is not None,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
    if matrix.data_ptr() != y.data_ptr():
        y.copy_(matrix.view(y.shape))


def time_term_backward(
    d_out: Tensor, time: Tensor, time_weight: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of time, time weight and bias, where needed, given that of their sum."""
    matrix = rows_of(d_out)
    sums = PartialSums(d_out, *matrix.shape)
    if matrix.numel():
        _time_term_backward[sums.grid](
            matrix,
            time.contiguous(),
            time_weight,
            sums.of_rows,
            sums.of_columns,
            *matrix.shape,
            sums.rows_per_group,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
    return sums.gradients(time, time_weight, needed)


def gated(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """h `[.., f]` of y `[.., 2 f]`."""
    matrix = rows_of(y)
    rows, f = matrix.shape[0], matrix.shape[1] // 2
    out = torch.empty((*y.shape[:-1], f), dtype=y.dtype, device=y.device)
    if rows:
        _gated[tiles(rows, f)](
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


def gated_backward(
    d_out: Tensor,
    y: Tensor,
    time: Tensor,
    time_weight: Tensor,
    bias: Tensor | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of y, and where needed of time, time weight and bias."""
    matrix = rows_of(y)
    rows, f = matrix.shape[0], matrix.shape[1] // 2
    d_y = torch.empty_like(matrix)
    sums = PartialSums(y, rows, f, halves=2)
    if rows:
        _gated_backward[sums.grid](
            rows_of(d_out),
            matrix,
            time.contiguous(),
            time_weight,
            time_weight if bias is None else bias,
            d_y,
            sums.of_rows,
            sums.of_columns,
            rows,
            f,
            sums.rows_per_group,
            bias is not None,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
    return d_y.view(y.shape), *sums.gradients(time, time_weight, needed)


@triton.jit
def _add_time_term(
    y, time, weight, bias, rows, columns, BIAS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    place = y + row[:, None] * columns + column[None, :]
    t = tl.load(time + row, row < rows, other=0.0).to(tl.float32)
    w = tl.load(weight + column, column < columns, other=0.0).to(tl.float32)
    out = tl.load(place, mask, other=0.0).to(tl.float32) + t[:, None] * w[None, :]
    if BIAS:
        out += tl.load(bias + column, column < columns, other=0.0).to(tl.float32)[None, :]
    tl.store(place, out.to(y.dtype.element_ty), mask)


@triton.jit
def _time_term_backward(
    d_out, time, weight, of_rows, of_columns, rows, columns, rows_per_group, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    group, block = tl.program_id(0), tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    w = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    d_weight = tl.zeros([COLUMNS], tl.float32)
    d_bias = tl.zeros([COLUMNS], tl.float32)
    first = group.to(tl.int64) * rows_per_group
    for start in range(0, rows_per_group, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        d_o = tl.load(d_out + row[:, None] * columns + column[None, :], mask, other=0.0)
        d_o = d_o.to(tl.float32)
        t = tl.load(time + row, row < rows, other=0.0).to(tl.float32)
        tl.store(of_rows + block * rows + row, tl.sum(d_o * w[None, :], 1), row < rows)
        d_weight += tl.sum(d_o * t[:, None], 0)
        d_bias += tl.sum(d_o, 0)
    place = of_columns + group * columns + column
    tl.store(place, d_weight, inside)
    tl.store(place + tl.num_programs(0) * columns, d_bias, inside)


@triton.jit
def _half(y, place, mask, t, weight, bias, column, inside, BIAS: tl.constexpr):
    """One half of the sum of a tile, and its time weights."""
    w = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    z = tl.load(y + place, mask, other=0.0).to(tl.float32) + t[:, None] * w[None, :]
    if BIAS:
        z += tl.load(bias + column, inside, other=0.0).to(tl.float32)[None, :]
    return z, w


@triton.jit
def _gated(
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
def _gated_backward(
    d_out, y, time, weight, bias, d_y, of_rows, of_columns, rows, f, rows_per_group,
    BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    group, block = tl.program_id(0), tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < f
    d_weight_gate = tl.zeros([COLUMNS], tl.float32)
    d_weight_up = tl.zeros([COLUMNS], tl.float32)
    d_bias_gate = tl.zeros([COLUMNS], tl.float32)
    d_bias_up = tl.zeros([COLUMNS], tl.float32)
    first = group.to(tl.int64) * rows_per_group
    for start in range(0, rows_per_group, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        t = tl.load(time + row, row < rows, other=0.0).to(tl.float32)
        place = row[:, None] * (2 * f) + column[None, :]
        gate, w_gate = _half(y, place, mask, t, weight, bias, column, inside, BIAS)
        up, w_up = _half(y, place + f, mask, t, weight, bias, column + f, inside, BIAS)
        d_h = tl.load(d_out + row[:, None] * f + column[None, :], mask, other=0.0).to(tl.float32)
        s = tl.sigmoid(gate)
        d_gate = d_h * up * s * (1.0 + gate * (1.0 - s))
        d_up = d_h * gate * s
        tl.store(d_y + place, d_gate.to(d_y.dtype.element_ty), mask)
        tl.store(d_y + place + f, d_up.to(d_y.dtype.element_ty), mask)
        d_time = tl.sum(d_gate * w_gate[None, :] + d_up * w_up[None, :], 1)
        tl.store(of_rows + block * rows + row, d_time, row < rows)
        d_weight_gate += tl.sum(d_gate * t[:, None], 0)
        d_weight_up += tl.sum(d_up * t[:, None], 0)
        d_bias_gate += tl.sum(d_gate, 0)
        d_bias_up += tl.sum(d_up, 0)
    place = of_columns + group * (2 * f) + column
    tl.store(place, d_weight_gate, inside)
    tl.store(place + f, d_weight_up, inside)
    place += tl.num_programs(0) * (2 * f)
    tl.store(place, d_bias_gate, inside)
    tl.store(place + f, d_bias_up, inside)
