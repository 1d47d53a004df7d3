"""Triton kernels of `time_term`: one pass over y, and one over its gradient."""

from __future__ import annotations

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


def add_in_place(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> None:
    """y `[.., out]` += time `[.., 1]` * time_weight `[out]` + bias `[out]`, summed in fp32."""
    matrix = rows_of(y)
    rows, columns = matrix.shape
    if rows:
        _add[tiles(rows, columns)](
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


def gradients(
    grad: Tensor, time: Tensor, time_weight: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of time, time weight and bias, where needed, given that of their sum."""
    matrix = rows_of(grad)
    sums = PartialSums(grad, *matrix.shape)
    if matrix.numel():
        _gradients[sums.grid](
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


@triton.jit
def _add(
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
def _gradients(
    grad, time, weight, of_rows, of_columns, rows, columns, rows_per_group, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    group, block = tl.program_id(0), tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    w = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    by_weight = tl.zeros([COLUMNS], tl.float32)
    by_bias = tl.zeros([COLUMNS], tl.float32)
    first = group.to(tl.int64) * rows_per_group
    for start in range(0, rows_per_group, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        g = tl.load(grad + row[:, None] * columns + column[None, :], mask, other=0.0)
        g = g.to(tl.float32)
        t = tl.load(time + row, row < rows, other=0.0).to(tl.float32)
        tl.store(of_rows + block * rows + row, tl.sum(g * w[None, :], 1), row < rows)
        by_weight += tl.sum(g * t[:, None], 0)
        by_bias += tl.sum(g, 0)
    place = of_columns + group * columns + column
    tl.store(place, by_weight, inside)
    tl.store(place + tl.num_programs(0) * columns, by_bias, inside)
