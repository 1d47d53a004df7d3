"""Triton kernels of `augment` and `centroid`: one pass over the heads forward, one backward.

A program takes a few rows, each one head of one token; rows count `[tokens, batch, heads]`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helm_megatron.kernels.augment.lanes import Lanes, augmented_width, is_wide
from helm_megatron.kernels.augment.rotary import Tables
from helm_megatron.kernels.common.arithmetic import rounded

_ROWS = 16


@triton.jit
def _row_of(x, rows, heads, batch, x_s, x_b, x_h):
    """Pointers to the first number of each row of x `[tokens, batch, heads, width]`."""
    rows = rows.to(tl.int64)
    return x + rows // (batch * heads) * x_s + rows // heads % batch * x_b + rows % heads * x_h


@triton.jit
def _table(table, rows, per_token, column, mask, TURNED: tl.constexpr):
    """Numbers of a rotary table `[tokens, TURNED]` at a column of each row."""
    token = (rows // per_token).to(tl.int64)
    return tl.load(table + token[:, None] * TURNED + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def lift_kernel(
    x, out, tau, shift, cos, sin, c, count, batch, heads, x_s, x_b, x_h,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIGN: tl.constexpr,
    LANES: tl.constexpr, LOW: tl.constexpr, SCALED: tl.constexpr, SHIFTED: tl.constexpr,
    TURNED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """(x, lanes, zeros): the lane LOW has the low part of the time, the others the high part.

    The first TURNED columns of x are turned before, in pairs half of them apart.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    here = (rows < count)[:, None]
    start = _row_of(x, rows, heads, batch, x_s, x_b, x_h)
    space = tl.load(start[:, None] + column, mask=here & (column < D), other=0.0).to(tl.float32)
    if TURNED:
        left = column < TURNED // 2
        partner = tl.where(left, column + TURNED // 2, column - TURNED // 2)
        turned = here & (column < TURNED)
        other = tl.load(start[:, None] + partner, mask=turned, other=0.0).to(tl.float32)
        other *= _table(sin, rows, batch * heads, column, turned, TURNED)
        straight = space * _table(cos, rows, batch * heads, column, turned, TURNED)
        space = tl.where(turned, straight + tl.where(left, -other, other), space)
    dtype = out.dtype.element_ty
    factor = 2 / tl.load(tau).to(tl.float32) if SCALED else 1.0
    if SCALED or TURNED:
        space = rounded(space * factor, dtype).to(tl.float32)
    time = tl.sqrt(tl.sum(space * space, 1) + c * factor * factor)
    if SHIFTED:
        time -= tl.load(shift + rows % (batch * heads))
    high = rounded(time, dtype).to(tl.float32)
    lanes = tl.where(column == D + LOW, (time - high)[:, None], high[:, None]) * SIGN
    value = tl.where(column < D, space, tl.where(column < D + LANES, lanes, 0.0))
    where = out + rows.to(tl.int64)[:, None] * WIDTH + column
    tl.store(where, rounded(value, dtype), mask=here & (column < WIDTH))


@triton.jit
def lift_backward_kernel(
    out, d_out, tau, shift, cos, sin, d_x, d_tau, count, batch, heads, o_s, o_b, o_h,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIGN: tl.constexpr,
    LANES: tl.constexpr, LOW: tl.constexpr, SCALED: tl.constexpr, SHIFTED: tl.constexpr,
    TURNED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and with SCALED each row's part of that of log(1 / tau)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (rows < count)[:, None] & (column < WIDTH)
    at = out + rows.to(tl.int64)[:, None] * WIDTH + column
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    start = _row_of(d_out, rows, heads, batch, o_s, o_b, o_h)
    d_o = tl.load(start[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    first, low = column == D, column == D + LOW
    lanes = (column >= D) & (column < D + LANES) & ~low
    time = SIGN * tl.sum(tl.where(first | low, value, 0.0), 1)
    d_time = SIGN * tl.sum(tl.where(lanes, d_o, 0.0), 1)
    if SHIFTED:
        time += tl.load(shift + rows % (batch * heads))
    ratio = d_time / tl.where(rows < count, time, 1.0)
    d_value = d_o + value * ratio[:, None]
    if SCALED:
        part = tl.sum(tl.where(column < D, d_o * value, 0.0), 1) + time * d_time
        tl.store(d_tau + rows, part, mask=rows < count)
    if TURNED:
        left = column < TURNED // 2
        partner = tl.where(left, column + TURNED // 2, column - TURNED // 2)
        turned = inside & (column < TURNED)
        row = out + rows.to(tl.int64)[:, None] * WIDTH
        other = tl.load(row + partner, mask=turned, other=0.0).to(tl.float32) * ratio[:, None]
        other += tl.load(start[:, None] + partner, mask=turned, other=0.0).to(tl.float32)
        other *= _table(sin, rows, batch * heads, partner, turned, TURNED)
        straight = d_value * _table(cos, rows, batch * heads, column, turned, TURNED)
        d_value = tl.where(turned, straight + tl.where(left, other, -other), d_value)
    if SCALED:
        d_value *= 2 / tl.load(tau).to(tl.float32)
    where = d_x + rows.to(tl.int64)[:, None] * D + column
    tl.store(where, rounded(d_value, d_x.dtype.element_ty), mask=inside & (column < D))


@triton.jit
def centroid_kernel(
    m, shift, out, norm2, c, eps, count, per_token, D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, SHIFTED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Ambient points `[count, 1 + D]` of sums `[count, WIDTH]`, and m_t^2 - |m_s|^2."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    here = (rows < count)[:, None]
    long = rows.to(tl.int64)
    at = m + long[:, None] * WIDTH + column
    value = tl.load(at, mask=here & (column < WIDTH), other=0.0).to(tl.float32)
    time = tl.sum(tl.where(column >= D, value, 0.0), 1)
    if SHIFTED:
        time += tl.load(shift + rows % per_token)
    space = tl.where(column < D, value, 0.0)
    length2 = tl.sum(space * space, 1)
    difference = time * time - length2
    radius = tl.sqrt(c / tl.maximum(tl.abs(difference), eps))
    tl.store(norm2 + rows, difference, mask=rows < count)
    time = tl.sqrt(length2 * radius * radius + c)
    dtype = out.dtype.element_ty
    tl.store(out + long * (1 + D), rounded(time, dtype), mask=rows < count)
    where = out + long[:, None] * (1 + D) + 1 + column
    tl.store(where, rounded(space * radius[:, None], dtype), mask=here & (column < D))


@triton.jit
def centroid_backward_kernel(
    m, shift, norm2, d_out, d_m, c, eps, count, per_token, D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, SHIFTED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of the sums `[count, WIDTH]`; that of the time goes to all its lanes."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (rows < count)[:, None] & (column < WIDTH)
    long = rows.to(tl.int64)
    value = tl.load(m + long[:, None] * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    time = tl.sum(tl.where(column >= D, value, 0.0), 1)
    if SHIFTED:
        time += tl.load(shift + rows % per_token)
    space = tl.where(column < D, value, 0.0)
    difference = tl.load(norm2 + rows, mask=rows < count, other=1.0)
    length2 = time * time - difference
    radius = tl.sqrt(c / tl.maximum(tl.abs(difference), eps))
    at = d_out + long * (1 + D)
    d_o_time = tl.load(at, mask=rows < count, other=0.0).to(tl.float32)
    spot = at[:, None] + 1 + column
    d_o = tl.load(spot, mask=inside & (column < D), other=0.0).to(tl.float32)
    outward = radius * d_o_time / tl.sqrt(tl.maximum(length2, 0.0) * radius * radius + c)
    along = tl.sum(space * d_o, 1) + outward * length2
    along = tl.where(tl.abs(difference) > eps, along * radius / difference, 0.0)
    d_value = d_o * radius[:, None] + space * (outward * radius + along)[:, None]
    d_value = tl.where(column < D, d_value, -(along * time)[:, None])
    where = d_m + long[:, None] * WIDTH + column
    tl.store(where, rounded(d_value, d_m.dtype.element_ty), mask=inside)


def lifted(
    x: Tensor,
    lanes: Lanes,
    c: float,
    tau: Tensor | None = None,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> Tensor:
    """x `[s, (b,) heads, d]`, turned, times 2 / tau, with the lanes of its time."""
    width = augmented_width(x.dtype, x.shape[-1], len(lanes.parts))
    return _lifted(x, width, *_numbers(x.dtype, lanes), c, tau, shift, rotary)


def turned(x: Tensor, rotary: Tables) -> Tensor:
    """x `[s, b, heads, d]` turned, without lanes."""
    return _lifted(x, x.shape[-1], 1, 0, 0, 1.0, None, None, rotary)


def lifted_backward(
    d_out: Tensor,
    out: Tensor,
    d: int,
    lanes: Lanes,
    tau: Tensor | None = None,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x, and, with tau, that of tau."""
    d_out = d_out if d_out.stride(-1) == 1 else d_out.contiguous()
    width = out.shape[-1]
    d_x = out.new_empty(*out.shape[:-1], d)
    count = out.numel() // width
    parts = None if tau is None else out.new_empty(count, dtype=torch.float32)
    sign, number, low = _numbers(out.dtype, lanes)
    lift_backward_kernel[_grid(count)](
        out, d_out, tau, shift, *(rotary or (None, None)), d_x, parts, count, *_layout(d_out), D=d,
        SIGN=sign, LANES=number, LOW=low, SCALED=tau is not None, TURNED=_turned_width(rotary),
        **_options(width, shift),
    )  # fmt: skip
    if tau is None or parts is None:
        return d_x, None
    return d_x, (-parts.sum() / tau).to(tau.dtype)


def centroid(
    m: Tensor, shift: Tensor | None, d: int, c: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Ambient points `[.., 1 + d]` of sums m `[.., width]`, and m_t^2 - |m_s|^2."""
    m = m.contiguous()
    out, norm2 = m.new_empty(*m.shape[:-1], 1 + d), m.new_empty(m.shape[:-1], dtype=torch.float32)
    centroid_kernel[_grid(norm2.numel())](
        m, shift, out, norm2, c, eps, norm2.numel(), m[0, ..., 0].numel(), D=d,
        **_options(m.shape[-1], shift),
    )  # fmt: skip
    return out, norm2


def centroid_backward(
    d_out: Tensor,
    m: Tensor,
    shift: Tensor | None,
    d: int,
    c: float,
    eps: float,
    norm2: Tensor,
) -> Tensor:
    """The gradient of m."""
    m, d_out = m.contiguous(), d_out.contiguous()
    d_m = torch.empty_like(m)
    centroid_backward_kernel[_grid(norm2.numel())](
        m, shift, norm2, d_out, d_m, c, eps, norm2.numel(), m[0, ..., 0].numel(), D=d,
        **_options(m.shape[-1], shift),
    )  # fmt: skip
    return d_m


def _lifted(
    x: Tensor,
    width: int,
    sign: int,
    lanes: int,
    low: int,
    c: float,
    tau: Tensor | None,
    shift: Tensor | None,
    rotary: Tables | None,
) -> Tensor:
    if rotary is not None and len(rotary[0]) != len(x):
        raise ValueError(f"angles of {len(rotary[0])} tokens for heads of {len(x)}")
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(*x.shape[:-1], width)
    count = out.numel() // width
    lift_kernel[_grid(count)](
        x, out, tau, shift, *(rotary or (None, None)), c, count, *_layout(x), D=x.shape[-1],
        SIGN=sign, LANES=lanes, LOW=low, SCALED=tau is not None, TURNED=_turned_width(rotary),
        **_options(width, shift),
    )  # fmt: skip
    return out


def _numbers(dtype: torch.dtype, lanes: Lanes) -> tuple[int, int, int]:
    """Sign, number of lanes, and which of them has the low part: none, if one has it all."""
    if is_wide(dtype):
        return lanes.sign, 1, 1 << 20
    return lanes.sign, len(lanes.parts), lanes.parts.index(1)


def _layout(x: Tensor) -> tuple[int, int, int, int, int]:
    """Batch, heads, and the strides of x `[s, b, heads, d]` or `[s, heads, d]`."""
    batch, stride = (x.shape[1], x.stride(1)) if x.dim() == 4 else (1, 0)
    return batch, x.shape[-2], x.stride(0), stride, x.stride(-2)


def _grid(rows: int) -> tuple[int]:
    return (triton.cdiv(rows, _ROWS),)


def _options(width: int, shift: Tensor | None) -> dict[str, int | bool]:
    block = triton.next_power_of_2(width)
    return dict(WIDTH=width, BLOCK=block, ROWS=_ROWS, SHIFTED=shift is not None)


def _turned_width(rotary: Tables | None) -> int:
    return 0 if rotary is None else rotary[0].shape[-1]
