"""Triton kernels of `norm2`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helm_megatron.kernels.common.rows import BLOCK_COLUMNS, BLOCK_ROWS, rows_of, tiles


def forward(x: Tensor) -> Tensor:
    """|x|^2 of x `[.., d]` as `[.., 1]` in fp32."""
    matrix = rows_of(x)
    rows, d = matrix.shape
    out = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if rows:
        grid = (triton.cdiv(rows, BLOCK_ROWS),)
        _forward[grid](matrix, out, rows, d, BLOCK_ROWS, BLOCK_COLUMNS)
    return out


def backward(d_out: Tensor, x: Tensor) -> Tensor:
    """2 x d_out, in x's dtype."""
    matrix = rows_of(x)
    rows, d = matrix.shape
    d_x = torch.empty_like(matrix)
    if rows:
        _backward[tiles(rows, d)](
            matrix, d_out.contiguous(), d_x, rows, d, BLOCK_ROWS, BLOCK_COLUMNS
        )
    return d_x.view(x.shape)


@triton.jit
def _forward(x, out, rows, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < d)[None, :]
        value = tl.load(x + row[:, None] * d + column[None, :], mask, other=0.0).to(tl.float32)
        total += value * value
    tl.store(out + row, tl.sum(total, 1), row < rows)


@triton.jit
def _backward(x, d_out, d_x, rows, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < d)[None, :]
    place = row[:, None] * d + column[None, :]
    factor = 2.0 * tl.load(d_out + row, row < rows, other=0.0)
    value = tl.load(x + place, mask, other=0.0).to(tl.float32) * factor[:, None]
    tl.store(d_x + place, value.to(d_x.dtype.element_ty), mask)
