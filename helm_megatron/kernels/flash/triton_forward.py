"""Triton kernels of Lorentz flash attention: the times of points, and the forward pass.

Every tensor is laid out `[tokens, batch, heads, width]`, and a program attends with one block of
rows (queries) of one head of one sequence or packed document. Scores are in base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from helm_megatron.kernels.common.arithmetic import dot, product, rounded


@triton.jit
def times_kernel(
    x, out, c, tokens, batch, heads, x_s, x_b, x_h, D: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Times sqrt(|x|^2 + c) in fp32, `[tokens, batch, heads]`.

    A pass of its own: the attention kernels read a block of keys once for every block of queries,
    and would take its times as often.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, lane, head = row // (batch * heads), row // heads % batch, row % heads
    column = tl.arange(0, WIDTH)
    valid = row < tokens * batch * heads
    space = tl.load(
        x + (token * x_s + lane * x_b + head * x_h)[:, None] + column[None, :],
        mask=valid[:, None] & (column < D)[None, :],
        other=0.0,
    ).to(tl.float32)
    tl.store(out + row, tl.sqrt(tl.sum(space * space, 1) + c), mask=valid)


@triton.jit
def span(bounds, index, length, PACKED: tl.constexpr):
    """First token, number of tokens and batch index of a packed document or of a sequence."""
    if PACKED:
        first = tl.load(bounds + index)
        return first.to(tl.int64), tl.load(bounds + index + 1) - first, 0
    else:
        return 0, length, index.to(tl.int64)


@triton.jit
def program(length, SIZE: tl.constexpr):
    """Of this program the block of rows, how many a sequence has, and which sequence's head it is.

    Blocks are counted first. All on one axis: CUDA counts no further than 65,535 on the others.
    """
    blocks = tl.cdiv(length, SIZE)
    return tl.program_id(0) % blocks, blocks, tl.program_id(0) // blocks


@triton.jit
def tile(x, rows, count, stride, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of x `[count, D]` as a block `[rows, WIDTH]`, zero where there are none."""
    column = tl.arange(0, WIDTH)
    inside = (rows < count)[:, None] & (column < D)[None, :]
    return tl.load(
        x + rows.to(tl.int64)[:, None] * stride + column[None, :], mask=inside, other=0.0
    )


@triton.jit
def column(x, rows, count, stride, other: tl.constexpr):
    """One number a row, or `other` beyond the last row."""
    return tl.load(x + rows.to(tl.int64) * stride, mask=rows < count, other=other)


@triton.jit
def put(x, value, rows, count, stride, D: tl.constexpr, WIDTH: tl.constexpr):
    """Store a block where `tile` would read it."""
    position = tl.arange(0, WIDTH)
    inside = (rows < count)[:, None] & (position < D)[None, :]
    where = x + rows.to(tl.int64)[:, None] * stride + position[None, :]
    tl.store(where, rounded(value, x.dtype.element_ty), mask=inside)


@triton.jit
def _attend(
    state, q, q_time, k, k_time, v, v_time, scale, rows, first, count, k_s, v_s, time_s,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr,
    N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into the running sums (space, time, weight, largest score)."""
    space, time, total, top = state
    keys = first + tl.arange(0, N)
    products = product(q, tl.trans(tile(k, keys, count, k_s, D, WIDTH_D)))
    key_times = column(k_time, keys, count, time_s, 0.0)
    scores = (products - q_time[:, None] * key_times[None, :]) * scale
    if MASKED:
        scores = tl.where(rows[:, None] >= keys[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    shrink = tl.exp2(top - new_top)
    weights = tl.exp2(scores - new_top[:, None])
    total = total * shrink + tl.sum(weights, 1)
    values = tile(v, keys, count, v_s, E, WIDTH_E)
    # Space and time take the same rounded weights: m_t^2 - |m_s|^2 would magnify a difference.
    weights = rounded(weights, values.dtype)
    value_times = column(v_time, keys, count, time_s, 0.0)
    time = time * shrink + tl.sum(weights.to(tl.float32) * value_times[None, :], 1)
    space = dot(weights, values, space * shrink[:, None])
    return space, time, total, new_top


@triton.jit
def forward_kernel(
    q, k, v, q_time, k_time, v_time, tau, bounds, out, remainder, lse, radius, c, eps, length,
    batch, heads, q_s, q_b, q_h, k_s, k_b, k_h, v_s, v_b, v_h,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr,
    WIDTH_E: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PACKED: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Ambient centroids `[tokens, batch, heads, 1 + E]`, and what the backward pass needs.

    lse `[tokens, batch, heads]` is log2 of the sum of 2^score, radius the factor by which the
    weighted sum was scaled onto the hyperboloid, and with SPLIT the remainder what rounding took
    from the centroids' space coordinates.
    """
    # The last queries have the most keys; they start first.
    index, blocks, of = program(length, M)
    block, head = blocks - 1 - index, of % heads
    start, count, lane = span(bounds, of // heads, length, PACKED)
    if block * M < count:
        rows = block * M + tl.arange(0, M)
        kv_head = head // GROUP
        queries = tile(q + start * q_s + lane * q_b + head * q_h, rows, count, q_s, D, WIDTH_D)
        k += start * k_s + lane * k_b + kv_head * k_h
        v += start * v_s + lane * v_b + kv_head * v_h
        at = (start * batch + lane) * heads + head
        kv_at = (start * batch + lane) * (heads // GROUP) + kv_head
        stride, kv_stride = batch * heads, batch * heads // GROUP
        query_times = column(q_time + at, rows, count, stride, 0.0)
        scale = 2.8853900817779268 / tl.load(tau).to(tl.float32)  # 2 / tau, in base 2
        zero = tl.zeros([M], dtype=tl.float32)
        state = (tl.zeros([M, WIDTH_E], dtype=tl.float32), zero, zero, zero - float("inf"))
        whole = block * M // N * N
        for first in range(0, whole, N):
            state = _attend(
                state, queries, query_times, k, k_time + kv_at, v, v_time + kv_at, scale, rows,
                first, count, k_s, v_s, kv_stride, D, E, WIDTH_D, WIDTH_E, N, False,
            )  # fmt: skip
        for first in range(whole, tl.minimum(count, block * M + M), N):
            state = _attend(
                state, queries, query_times, k, k_time + kv_at, v, v_time + kv_at, scale, rows,
                first, count, k_s, v_s, kv_stride, D, E, WIDTH_D, WIDTH_E, N, True,
            )  # fmt: skip
        space, time, total, top = state
        space, time = space / total[:, None], time / total
        norm2 = tl.abs(time * time - tl.sum(space * space, 1))
        factor = tl.sqrt(c / tl.maximum(norm2, eps))
        space *= factor[:, None]
        put(out + at * (1 + E) + 1, space, rows, count, stride * (1 + E), E, WIDTH_E)
        if SPLIT:
            rest = space - rounded(space, out.dtype.element_ty).to(tl.float32)
            put(remainder + at * E, rest, rows, count, stride * E, E, WIDTH_E)
        time = tl.sqrt(tl.sum(space * space, 1) + c)
        spots, inside = rows.to(tl.int64) * stride + at, rows < count
        tl.store(out + spots * (1 + E), rounded(time, out.dtype.element_ty), mask=inside)
        tl.store(lse + spots, top + tl.log2(total), mask=inside)
        tl.store(radius + spots, factor, mask=inside)
