"""Triton kernels of the backward pass of Lorentz flash attention.

The output o of a row is its sum m of weighted values, scaled by r onto the hyperboloid. With g the
gradient by o_s, that by o_t brought into it, the gradient by m is

    dm_s = r (g + (g.o_s) o_s / c),   dm_t = -r (g.o_s) o_t / c.

o does not change with the length of m, so m.dm = 0 and the softmax's row term falls away. Far out
dm.v = dm_s.v_s + dm_t v_t cancels. In low precision dm_s is therefore carried in two parts, `high`
and `low`, with a matrix product each, and is computed from o_s in two parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from helm_megatron.kernels.common.arithmetic import dot, product, rounded
from helm_megatron.kernels.flash.triton_forward import column, put, span, tile


@triton.jit
def prepare_kernel(
    out, remainder, grad, radius, high, low, time, c, tokens,
    E: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """From the output and its gradient `[rows, 1 + E]`: dm_s in its parts `[rows, E]`, dm_t."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = tile(out + 1, rows, tokens, 1 + E, E, WIDTH).to(tl.float32)
    if SPLIT:
        o += tile(remainder, rows, tokens, E, E, WIDTH).to(tl.float32)
    o_time = tl.sqrt(tl.sum(o * o, 1) + c)
    g = tile(grad + 1, rows, tokens, 1 + E, E, WIDTH).to(tl.float32)
    g += (column(grad, rows, tokens, 1 + E, 0.0).to(tl.float32) / o_time)[:, None] * o
    g *= column(radius, rows, tokens, 1, 0.0)[:, None]
    along = tl.sum(g * o, 1) / c
    dm = g + along[:, None] * o
    put(high, dm, rows, tokens, E, E, WIDTH)
    if SPLIT:
        dm -= rounded(dm, high.dtype.element_ty).to(tl.float32)
        put(low, dm, rows, tokens, E, E, WIDTH)
    tl.store(time + rows, -along * o_time, mask=rows < tokens)


@triton.jit
def _query_step(
    state, q, q_time, lse, high, low, dm_time, k, k_time, v, v_time, scale, rows, first, count,
    k_s, v_s, time_s, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr,
    WIDTH_E: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to the gradients by queries: space, time, and tau."""
    space, time, warmth = state
    cols = first + tl.arange(0, N)
    keys = tile(k, cols, count, k_s, D, WIDTH_D)
    values = tl.trans(tile(v, cols, count, v_s, E, WIDTH_E))
    key_times = column(k_time, cols, count, time_s, 0.0)
    value_times = column(v_time, cols, count, time_s, 0.0)
    scores = product(q, tl.trans(keys)) - q_time[:, None] * key_times
    scores = scores * scale - lse[:, None]
    weights = tl.exp2(scores)
    if MASKED:
        weights = tl.where(rows[:, None] >= cols[None, :], weights, 0.0)
    slopes = product(high, values) + dm_time[:, None] * value_times
    if SPLIT:
        slopes += product(low, values)
    slopes *= weights
    warmth += tl.sum(tl.where(weights > 0, slopes * scores, 0.0), 1)
    slopes = rounded(slopes, keys.dtype)
    time += tl.sum(slopes.to(tl.float32) * key_times, 1)
    return dot(slopes, keys, space), time, warmth


@triton.jit
def query_kernel(
    q, k, v, q_time, k_time, v_time, tau, bounds, lse, high, low, dm_time, dq, dtau,
    length, batch, heads, q_s, q_b, q_h, k_s, k_b, k_h, v_s, v_b, v_h,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr,
    WIDTH_E: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PACKED: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Gradient by a block of queries, and its part of tau's, `[tokens, batch, heads]`."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1) % heads
    start, count, lane = span(bounds, tl.program_id(1) // heads, length, PACKED)
    if block * M < count:
        rows = block * M + tl.arange(0, M)
        kv_head = head // GROUP
        queries = tile(q + start * q_s + lane * q_b + head * q_h, rows, count, q_s, D, WIDTH_D)
        k += start * k_s + lane * k_b + kv_head * k_h
        v += start * v_s + lane * v_b + kv_head * v_h
        at = (start * batch + lane) * heads + head
        kv_at = (start * batch + lane) * (heads // GROUP) + kv_head
        stride, kv_stride = batch * heads, batch * heads // GROUP
        q_t = column(q_time + at, rows, count, stride, 1.0)
        largest = column(lse + at, rows, count, stride, float("inf"))
        dm = tile(high + at * E, rows, count, stride * E, E, WIDTH_E)
        rest = dm
        if SPLIT:
            rest = tile(low + at * E, rows, count, stride * E, E, WIDTH_E)
        dm_t = column(dm_time + at, rows, count, stride, 0.0)
        factor = 2 / tl.load(tau).to(tl.float32)
        scale = factor * 1.4426950408889634
        zero = tl.zeros([M], dtype=tl.float32)
        state = (tl.zeros([M, WIDTH_D], dtype=tl.float32), zero, zero)
        whole = block * M // N * N
        for first in range(0, whole, N):
            state = _query_step(
                state, queries, q_t, largest, dm, rest, dm_t, k, k_time + kv_at, v, v_time + kv_at,
                scale, rows, first, count, k_s, v_s, kv_stride, D, E, WIDTH_D, WIDTH_E, N, SPLIT,
                False,
            )  # fmt: skip
        for first in range(whole, tl.minimum(count, block * M + M), N):
            state = _query_step(
                state, queries, q_t, largest, dm, rest, dm_t, k, k_time + kv_at, v, v_time + kv_at,
                scale, rows, first, count, k_s, v_s, kv_stride, D, E, WIDTH_D, WIDTH_E, N, SPLIT,
                True,
            )  # fmt: skip
        space, time, warmth = state
        space = factor * (space - (time / q_t)[:, None] * queries.to(tl.float32))
        put(dq + at * D, space, rows, count, stride * D, D, WIDTH_D)
        # A row's gradients by the scores sum to zero, so scores less `lse` serve as well.
        part = -warmth * 0.6931471805599453 * factor / 2
        tl.store(dtau + at + rows.to(tl.int64) * stride, part, mask=rows < count)


@triton.jit
def _key_step(
    state, k, k_time, v, v_time, q, q_time, lse, high, low, dm_time, scale, cols, first, count,
    q_s, stride, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr,
    M: tl.constexpr, SPLIT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add one block of queries to the gradients by keys and values, all transposed."""
    dk, dk_time, dv, dv_time = state
    rows = first + tl.arange(0, M)
    queries = tile(q, rows, count, q_s, D, WIDTH_D)
    dm = tile(high, rows, count, stride * E, E, WIDTH_E)
    query_times = column(q_time, rows, count, stride, 0.0)
    dm_t = column(dm_time, rows, count, stride, 0.0)
    largest = column(lse, rows, count, stride, float("inf"))
    scores = product(k, tl.trans(queries)) - k_time[:, None] * query_times
    weights = tl.exp2(scores * scale - largest)
    if MASKED:
        weights = tl.where(rows[None, :] >= cols[:, None], weights, 0.0)
    slopes = product(v, tl.trans(dm)) + v_time[:, None] * dm_t
    # Space and time take the same rounded weights: their difference would magnify one of those.
    rounded_weights = rounded(weights, v.dtype)
    dv = dot(rounded_weights, dm, dv)
    dv_time += tl.sum(rounded_weights.to(tl.float32) * dm_t, 1)
    if SPLIT:
        rest = tile(low, rows, count, stride * E, E, WIDTH_E)
        slopes += product(v, tl.trans(rest))
        dv = dot(rounded_weights, rest, dv)
    slopes = rounded(slopes * weights, k.dtype)
    dk_time += tl.sum(slopes.to(tl.float32) * query_times, 1)
    return dot(slopes, queries, dk), dk_time, dv, dv_time


@triton.jit
def key_kernel(
    q, k, v, q_time, k_time, v_time, tau, bounds, lse, high, low, dm_time, dk, dv,
    length, batch, heads, q_s, q_b, q_h, k_s, k_b, k_h, v_s, v_b, v_h,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr,
    WIDTH_E: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PACKED: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Gradients by a block of keys and their values, over all query heads of their group."""
    block, kv_heads = tl.program_id(0), heads // GROUP
    kv_head = tl.program_id(1) % kv_heads
    start, count, lane = span(bounds, tl.program_id(1) // kv_heads, length, PACKED)
    if block * N < count:
        cols = block * N + tl.arange(0, N)
        keys = tile(k + start * k_s + lane * k_b + kv_head * k_h, cols, count, k_s, D, WIDTH_D)
        values = tile(v + start * v_s + lane * v_b + kv_head * v_h, cols, count, v_s, E, WIDTH_E)
        kv_at = (start * batch + lane) * kv_heads + kv_head
        stride, kv_stride = batch * heads, batch * kv_heads
        k_t = column(k_time + kv_at, cols, count, kv_stride, 1.0)
        v_t = column(v_time + kv_at, cols, count, kv_stride, 1.0)
        factor = 2 / tl.load(tau).to(tl.float32)
        scale = factor * 1.4426950408889634
        zero = tl.zeros([N], dtype=tl.float32)
        state = (
            tl.zeros([N, WIDTH_D], dtype=tl.float32), zero,
            tl.zeros([N, WIDTH_E], dtype=tl.float32), zero,
        )  # fmt: skip
        masked = block * N // M * M
        whole = tl.minimum(count, tl.cdiv(block * N + N, M) * M)
        for member in range(GROUP):
            head = kv_head * GROUP + member
            rows_of_q = q + start * q_s + lane * q_b + head * q_h
            at = (start * batch + lane) * heads + head
            high_of_head = high + at * E
            low_of_head = high_of_head
            if SPLIT:
                low_of_head = low + at * E
            for first in range(masked, whole, M):
                state = _key_step(
                    state, keys, k_t, values, v_t, rows_of_q, q_time + at, lse + at, high_of_head,
                    low_of_head, dm_time + at, scale, cols, first, count, q_s, stride, D, E,
                    WIDTH_D, WIDTH_E, M, SPLIT, True,
                )  # fmt: skip
            for first in range(whole, count, M):
                state = _key_step(
                    state, keys, k_t, values, v_t, rows_of_q, q_time + at, lse + at, high_of_head,
                    low_of_head, dm_time + at, scale, cols, first, count, q_s, stride, D, E,
                    WIDTH_D, WIDTH_E, M, SPLIT, False,
                )  # fmt: skip
        dk_space, dk_time, dv_space, dv_time = state
        dk_space = factor * (dk_space - (dk_time / k_t)[:, None] * keys.to(tl.float32))
        dv_space += (dv_time / v_t)[:, None] * values.to(tl.float32)
        put(dk + kv_at * D, dk_space, cols, count, kv_stride * D, D, WIDTH_D)
        put(dv + kv_at * E, dv_space, cols, count, kv_stride * E, E, WIDTH_E)
