"""Grids of the Triton kernels over matrices of tokens.

Kernels that reduce over tokens (gradients of weights) or over features (of times) write partial
sums, added up by torch: the same result in every run, which atomics do not give.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

# Tiles of elementwise kernels.
BLOCK_ROWS, BLOCK_COLUMNS = 8, 256
# How many programs share the tokens of one block of columns, at most.
MAX_GROUPS = 64


def rows_of(x: Tensor) -> Tensor:
    """x as a contiguous matrix `[tokens, features]`."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def tiles(rows: int, columns: int) -> tuple[int, int]:
    """Grid of one program a tile."""
    return triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)


class PartialSums:
    """Buffers of partial sums, and the grid of (groups of rows, blocks of columns) they belong to.

    `halves` is how many columns `columns` apart each program handles.
    """

    def __init__(self, like: Tensor, rows: int, columns: int, halves: int = 1) -> None:
        row_blocks, column_blocks = tiles(rows, columns)
        groups = max(min(row_blocks, MAX_GROUPS), 1)
        self.grid = groups, column_blocks
        self.rows_per_group = triton.cdiv(row_blocks, groups) * BLOCK_ROWS
        width = halves * columns
        self.of_rows = torch.empty((column_blocks, rows), dtype=torch.float32, device=like.device)
        self.of_columns = torch.zeros((2, groups, width), dtype=torch.float32, device=like.device)

    def gradients(
        self, time: Tensor, time_weight: Tensor, needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of time, time weight and bias, where needed."""
        d_weight, d_bias = self.of_columns.sum(1).to(time_weight.dtype)
        d_time = self.of_rows.sum(0).view_as(time)
        return (
            d_time if needed[0] else None,
            d_weight if needed[1] else None,
            d_bias if needed[2] else None,
        )
