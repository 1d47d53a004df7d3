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


def backward(x: Tensor, grad: Tensor) -> Tensor:
    """2 x grad, in x's dtype."""
    matrix = rows_of(x)
    rows, d = matrix.shape
    out = torch.empty_like(matrix)
    if rows:
        _backward[tiles(rows, d)](
            matrix, grad.contiguous(), out, rows, d, BLOCK_ROWS, BLOCK_COLUMNS
        )
    return out.view(x.shape)


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
def _backward(x, grad, out, rows, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < d)[None, :]
    place = row[:, None] * d + column[None, :]
    factor = 2.0 * tl.load(grad + row, row < rows, other=0.0)
    value = tl.load(x + place, mask, other=0.0).to(tl.float32) * factor[:, None]
    tl.store(out + place, value.to(out.dtype.element_ty), mask)
