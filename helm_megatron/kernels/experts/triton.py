"""Triton kernels of what lies between the grouped products of experts.

Rows come sorted by expert. A program takes a chunk of one expert's rows and a block of columns, so
it loads that block of the expert's parameters once. Sums over columns and over rows are written
by program and added up by torch: the same result in every run, which atomics do not give.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 8, 256
CHUNK = 8 * ROWS


class Chunks:
    """Where the chunks of all experts lie, for kernels over matrices of `rows` rows."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.rows = sum(counts)
        sizes = torch.tensor(counts)
        numbers = (sizes + CHUNK - 1) // CHUNK
        expert = torch.arange(len(counts)).repeat_interleave(numbers)
        end = sizes.cumsum(0)[expert]
        place = torch.arange(len(expert)) - (numbers.cumsum(0) - numbers)[expert]
        first = (end - sizes[expert]) + place * CHUNK
        table = torch.stack([expert, first, end]).int()
        self.table = table.to(device, non_blocking=True)
        self.numbers = numbers.to(device, non_blocking=True)
        self.counts = sizes.to(device, non_blocking=True)
        self.offsets = sizes.cumsum(0).int().to(device, non_blocking=True)

    def grid(self, columns: int) -> tuple[int, int]:
        """Programs by chunk and block of columns."""
        return self.table.shape[1], triton.cdiv(columns, COLUMNS)

    def of_columns(self, columns: int, width: int) -> Tensor:
        """A buffer for sums over columns, `[width, blocks, rows]`."""
        blocks = self.grid(columns)[1]
        return torch.empty(width, blocks, self.rows, dtype=torch.float32, device=self.table.device)

    def of_rows(self, columns: int) -> Tensor:
        """A buffer for two sums over the rows of a chunk, `[chunks, 2, columns]`."""
        chunks = self.table.shape[1]
        return torch.empty(chunks, 2, columns, dtype=torch.float32, device=self.table.device)

    def by_expert(self, partial: Tensor) -> Tensor:
        """Sums over the chunks `[chunks, ..]` or the rows `[rows]` of each expert."""
        lengths = self.numbers if partial.dim() > 1 else self.counts
        return torch.segment_reduce(partial, "sum", lengths=lengths, axis=0, unsafe=True, initial=0)


def gated(
    chunks: Chunks, a: Tensor, time: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h = SwiGLU of s (a + time w) + b, and |h|^2: `[n, f]` and `[n, 1]`, of a `[n, 2 f]`.

    scale `[experts]`, weight and bias `[experts, 2 f]`, time `[n, 1]`.
    """
    f = a.shape[1] // 2
    h, squares = a.new_empty(len(a), f), chunks.of_columns(f, 1)
    _gated[chunks.grid(f)](
        a, time, scale, weight, weight if bias is None else bias, h, squares, chunks.table,
        chunks.rows, f, bias is not None, CHUNK, ROWS, COLUMNS,
    )  # fmt: skip
    return h, squares.sum(1).view(-1, 1)


def gated_backward(
    chunks: Chunks,
    d_out: Tensor,
    a: Tensor,
    time: Tensor,
    d_square: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients, where h goes on to W2 h / s; d_out `[n, f]` is that of h, times s.

    Returns those of a, of time, of s by row, of weight and bias by expert `[experts, 2, 2 f]`; and
    h / s, of which the gradient of W2 is made.
    """
    f = a.shape[1] // 2
    d_a, h = torch.empty_like(a), torch.empty_like(d_out)
    row_sums, column_sums = chunks.of_columns(f, 2), chunks.of_rows(2 * f)
    _gated_backward[chunks.grid(f)](
        d_out, a, time, d_square, scale, weight, weight if bias is None else bias, d_a, h, row_sums,
        column_sums, chunks.table, chunks.rows, f, bias is not None, CHUNK, ROWS, COLUMNS,
    )  # fmt: skip
    d_time, d_scale = row_sums.sum(1)
    return d_a, d_time.view(-1, 1), d_scale, chunks.by_expert(column_sums), h


def add_time_term(
    chunks: Chunks, y: Tensor, time: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None
) -> None:
    """y = (y + time w + b) / s in place, y `[n, d]`, weight and bias `[experts, d]`."""
    d = y.shape[1]
    _add_time_term[chunks.grid(d)](
        y, time, scale, weight, weight if bias is None else bias, chunks.table, d,
        bias is not None, CHUNK, ROWS, COLUMNS,
    )  # fmt: skip


def time_term_backward(
    chunks: Chunks, d_out: Tensor, time: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of time `[n, 1]`, and of weight and bias by expert `[experts, 2, d]`."""
    d = d_out.shape[1]
    row_sums, column_sums = chunks.of_columns(d, 1), chunks.of_rows(d)
    _time_term_backward[chunks.grid(d)](
        d_out, time, scale, weight, row_sums, column_sums, chunks.table, chunks.rows, d, CHUNK,
        ROWS, COLUMNS,
    )  # fmt: skip
    return row_sums.sum(1).view(-1, 1), chunks.by_expert(column_sums)


@triton.jit
def _chunk(table):
    """Expert, first row and end of the expert's rows of this program."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    expert = tl.load(table + chunk).to(tl.int64)
    return expert, tl.load(table + chunks + chunk), tl.load(table + 2 * chunks + chunk)


@triton.jit
def _row(vector, column, inside):
    return tl.load(vector + column, inside, other=0.0).to(tl.float32)


@triton.jit
def _gated(
    a, time, scale, weight, bias, h, squares, table, rows, f, BIAS: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    expert, first, end = _chunk(table)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < f
    s = tl.load(scale + expert)
    place = expert * 2 * f + column
    w_gate, w_up = _row(weight, place, inside), _row(weight, place + f, inside)
    b_gate, b_up = tl.zeros_like(w_gate), tl.zeros_like(w_gate)
    if BIAS:
        b_gate, b_up = _row(bias, place, inside), _row(bias, place + f, inside)
    for start in range(0, CHUNK, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        t = tl.load(time + row, row < end, other=0.0)
        at = row.to(tl.int64)[:, None] * (2 * f) + column[None, :]
        gate = _row(a, at, mask) + t[:, None] * w_gate[None, :]
        up = _row(a, at + f, mask) + t[:, None] * w_up[None, :]
        gate, up = s * gate + b_gate[None, :], s * up + b_up[None, :]
        y = (gate * tl.sigmoid(gate) * up).to(h.dtype.element_ty)
        tl.store(h + row.to(tl.int64)[:, None] * f + column[None, :], y, mask)
        y = tl.where(mask, y.to(tl.float32), 0.0)
        tl.store(squares + tl.program_id(1) * rows + row, tl.sum(y * y, 1), row < end)


@triton.jit
def _gated_backward(
    d_out, a, time, d_square, scale, weight, bias, d_a, h, row_sums, column_sums, table, rows, f,
    BIAS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    expert, first, end = _chunk(table)
    block = tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < f
    s = tl.load(scale + expert)
    place = expert * 2 * f + column
    w_gate, w_up = _row(weight, place, inside), _row(weight, place + f, inside)
    b_gate, b_up = tl.zeros_like(w_gate), tl.zeros_like(w_gate)
    if BIAS:
        b_gate, b_up = _row(bias, place, inside), _row(bias, place + f, inside)
    d_w_gate, d_w_up = tl.zeros_like(w_gate), tl.zeros_like(w_gate)
    d_b_gate, d_b_up = tl.zeros_like(w_gate), tl.zeros_like(w_gate)
    for start in range(0, CHUNK, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        t = tl.load(time + row, row < end, other=0.0)
        q = tl.load(d_square + row, row < end, other=0.0)
        at = row.to(tl.int64)[:, None] * (2 * f) + column[None, :]
        # Before the factor s and the bias.
        z_gate = _row(a, at, mask) + t[:, None] * w_gate[None, :]
        z_up = _row(a, at + f, mask) + t[:, None] * w_up[None, :]
        gate, up = s * z_gate + b_gate[None, :], s * z_up + b_up[None, :]
        opened = tl.sigmoid(gate)
        y = gate * opened * up
        half = row.to(tl.int64)[:, None] * f + column[None, :]
        tl.store(h + half, (y / s).to(h.dtype.element_ty), mask)
        through = _row(d_out, half, mask) / s
        d_y = tl.where(mask, through + 2 * y * q[:, None], 0.0)
        d_gate = d_y * up * opened * (1.0 + gate * (1.0 - opened))
        d_up = d_y * gate * opened
        tl.store(d_a + at, (s * d_gate).to(d_a.dtype.element_ty), mask)
        tl.store(d_a + at + f, (s * d_up).to(d_a.dtype.element_ty), mask)
        d_t = s * tl.sum(d_gate * w_gate[None, :] + d_up * w_up[None, :], 1)
        d_s = tl.sum(d_gate * z_gate + d_up * z_up - tl.where(mask, through * y / s, 0.0), 1)
        tl.store(row_sums + block * rows + row, d_t, row < end)
        tl.store(row_sums + (tl.num_programs(1) + block) * rows + row, d_s, row < end)
        d_w_gate += s * tl.sum(d_gate * t[:, None], 0)
        d_w_up += s * tl.sum(d_up * t[:, None], 0)
        d_b_gate += tl.sum(d_gate, 0)
        d_b_up += tl.sum(d_up, 0)
    to = column_sums + tl.program_id(0).to(tl.int64) * (4 * f) + column
    tl.store(to, d_w_gate, inside)
    tl.store(to + f, d_w_up, inside)
    tl.store(to + 2 * f, d_b_gate, inside)
    tl.store(to + 3 * f, d_b_up, inside)


@triton.jit
def _add_time_term(
    y, time, scale, weight, bias, table, d, BIAS: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    expert, first, end = _chunk(table)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < d
    s = tl.load(scale + expert)
    w = _row(weight, expert * d + column, inside)
    b = tl.zeros_like(w)
    if BIAS:
        b = _row(bias, expert * d + column, inside)
    for start in range(0, CHUNK, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        t = tl.load(time + row, row < end, other=0.0)
        at = row.to(tl.int64)[:, None] * d + column[None, :]
        out = (_row(y, at, mask) + t[:, None] * w[None, :] + b[None, :]) / s
        tl.store(y + at, out.to(y.dtype.element_ty), mask)


@triton.jit
def _time_term_backward(
    d_out, time, scale, weight, row_sums, column_sums, table, rows, d, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    expert, first, end = _chunk(table)
    block = tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < d
    s = tl.load(scale + expert)
    w = _row(weight, expert * d + column, inside)
    d_w, d_b = tl.zeros_like(w), tl.zeros_like(w)
    for start in range(0, CHUNK, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        t = tl.load(time + row, row < end, other=0.0)
        d_o = _row(d_out, row.to(tl.int64)[:, None] * d + column[None, :], mask) / s
        tl.store(row_sums + block * rows + row, tl.sum(d_o * w[None, :], 1), row < end)
        d_w += tl.sum(d_o * t[:, None], 0)
        d_b += tl.sum(d_o, 0)
    to = column_sums + tl.program_id(0).to(tl.int64) * (2 * d) + column
    tl.store(to, d_w, inside)
    tl.store(to + d, d_b, inside)
