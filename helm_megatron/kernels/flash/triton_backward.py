"""Triton kernels of the backward pass of Lorentz flash attention.

The output o of a row is its sum m of weighted values, scaled by r onto the hyperboloid. With d_o
the gradient of o_s, that of o_t brought into it, the gradient of m is

    d_m_s = r (d_o + (d_o.o_s) o_s / c),   d_m_t = -r (d_o.o_s) o_t / c.

o does not change with the length of m, so m.d_m = 0 and the softmax's row term falls away. Far out
d_m.v = d_m_s.v_s + d_m_t v_t cancels. In low precision d_m_s is therefore carried in two parts,
`high` and `low`, with a matrix product each, and is computed from o_s in two parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from helm_megatron.kernels.common.arithmetic import dot, product, rounded
from helm_megatron.kernels.flash.triton_forward import column, program, put, span, tile


@triton.jit
def prepare_kernel(
    out, remainder, d_out, radius, high, low, time, c, tokens,
    E: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """From the output and its gradient `[rows, 1 + E]`: d_m_s in its parts `[rows, E]`, d_m_t."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = tile(out + 1, rows, tokens, 1 + E, E, WIDTH).to(tl.float32)
    if SPLIT:
        o += tile(remainder, rows, tokens, E, E, WIDTH).to(tl.float32)
    o_time = tl.sqrt(tl.sum(o * o, 1) + c)
    d_o = tile(d_out + 1, rows, tokens, 1 + E, E, WIDTH).to(tl.float32)
    d_o += (column(d_out, rows, tokens, 1 + E, 0.0).to(tl.float32) / o_time)[:, None] * o
    d_o *= column(radius, rows, tokens, 1, 0.0)[:, None]
    along = tl.sum(d_o * o, 1) / c
    d_m = d_o + along[:, None] * o
    put(high, d_m, rows, tokens, E, E, WIDTH)
    if SPLIT:
        d_m -= rounded(d_m, high.dtype.element_ty).to(tl.float32)
        put(low, d_m, rows, tokens, E, E, WIDTH)
    tl.store(time + rows, -along * o_time, mask=rows < tokens)


@triton.jit
def _query_step(
    state, q, q_time, lse, high, low, d_m_time, k, k_time, v, v_time, scale, rows, first, count,
    k_s, v_s, time_s, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr,
    WIDTH_E: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to the gradients of queries: space, time, and tau."""
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
    d_scores = product(high, values) + d_m_time[:, None] * value_times
    if SPLIT:
        d_scores += product(low, values)
    d_scores *= weights
    warmth += tl.sum(tl.where(weights > 0, d_scores * scores, 0.0), 1)
    d_scores = rounded(d_scores, keys.dtype)
    time += tl.sum(d_scores.to(tl.float32) * key_times, 1)
    return dot(d_scores, keys, space), time, warmth


@triton.jit
def query_kernel(
    q, k, v, q_time, k_time, v_time, tau, bounds, lse, high, low, d_m_time, d_q, d_tau,
    length, batch, heads, q_s, q_b, q_h, k_s, k_b, k_h, v_s, v_b, v_h,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr,
    WIDTH_E: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PACKED: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries, and its part of tau's, `[tokens, batch, heads]`."""
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
        q_t = column(q_time + at, rows, count, stride, 1.0)
        largest = column(lse + at, rows, count, stride, float("inf"))
        d_m = tile(high + at * E, rows, count, stride * E, E, WIDTH_E)
        rest = d_m
        if SPLIT:
            rest = tile(low + at * E, rows, count, stride * E, E, WIDTH_E)
        d_m_t = column(d_m_time + at, rows, count, stride, 0.0)
        factor = 2 / tl.load(tau).to(tl.float32)
        scale = factor * 1.4426950408889634
        zero = tl.zeros([M], dtype=tl.float32)
        state = (tl.zeros([M, WIDTH_D], dtype=tl.float32), zero, zero)
        whole = block * M // N * N
        for first in range(0, whole, N):
            state = _query_step(
                state, queries, q_t, largest, d_m, rest, d_m_t, k, k_time + kv_at, v,
                v_time + kv_at, scale, rows, first, count, k_s, v_s, kv_stride, D, E, WIDTH_D,
                WIDTH_E, N, SPLIT, False,
            )  # fmt: skip
        for first in range(whole, tl.minimum(count, block * M + M), N):
            state = _query_step(
                state, queries, q_t, largest, d_m, rest, d_m_t, k, k_time + kv_at, v,
                v_time + kv_at, scale, rows, first, count, k_s, v_s, kv_stride, D, E, WIDTH_D,
                WIDTH_E, N, SPLIT, True,
            )  # fmt: skip
        space, time, warmth = state
        space = factor * (space - (time / q_t)[:, None] * queries.to(tl.float32))
        put(d_q + at * D, space, rows, count, stride * D, D, WIDTH_D)
        # A row's gradients of the scores sum to zero, so scores less `lse` serve as well.
        part = -warmth * 0.6931471805599453 * factor / 2
        tl.store(d_tau + at + rows.to(tl.int64) * stride, part, mask=rows < count)


@triton.jit
def _key_step(
    state, k, k_time, v, v_time, q, q_time, lse, high, low, d_m_time, scale, cols, first, count,
    q_s, stride, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr,
    M: tl.constexpr, SPLIT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add one block of queries to the gradients of keys and values, all transposed."""
    d_k, d_k_time, d_v, d_v_time = state
    rows = first + tl.arange(0, M)
    queries = tile(q, rows, count, q_s, D, WIDTH_D)
    d_m = tile(high, rows, count, stride * E, E, WIDTH_E)
    query_times = column(q_time, rows, count, stride, 0.0)
    d_m_t = column(d_m_time, rows, count, stride, 0.0)
    largest = column(lse, rows, count, stride, float("inf"))
    scores = product(k, tl.trans(queries)) - k_time[:, None] * query_times
    weights = tl.exp2(scores * scale - largest)
    if MASKED:
        weights = tl.where(rows[None, :] >= cols[:, None], weights, 0.0)
    d_scores = product(v, tl.trans(d_m)) + v_time[:, None] * d_m_t
    # Space and time take the same rounded weights: their difference would magnify one of those.
    rounded_weights = rounded(weights, v.dtype)
    d_v = dot(rounded_weights, d_m, d_v)
    d_v_time += tl.sum(rounded_weights.to(tl.float32) * d_m_t, 1)
    if SPLIT:
        rest = tile(low, rows, count, stride * E, E, WIDTH_E)
        d_scores += product(v, tl.trans(rest))
        d_v = dot(rounded_weights, rest, d_v)
    d_scores = rounded(d_scores * weights, k.dtype)
    d_k_time += tl.sum(d_scores.to(tl.float32) * query_times, 1)
    return dot(d_scores, queries, d_k), d_k_time, d_v, d_v_time


@triton.jit
def key_kernel(
    q, k, v, q_time, k_time, v_time, tau, bounds, lse, high, low, d_m_time, d_k, d_v,
    length, batch, heads, q_s, q_b, q_h, k_s, k_b, k_h, v_s, v_b, v_h,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr,
    WIDTH_E: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PACKED: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and their values, over all query heads of their group."""
    block, _, of = program(length, N)
    kv_heads = heads // GROUP
    kv_head = of % kv_heads
    start, count, lane = span(bounds, of // kv_heads, length, PACKED)
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
                    low_of_head, d_m_time + at, scale, cols, first, count, q_s, stride, D, E,
                    WIDTH_D, WIDTH_E, M, SPLIT, True,
                )  # fmt: skip
            for first in range(whole, count, M):
                state = _key_step(
                    state, keys, k_t, values, v_t, rows_of_q, q_time + at, lse + at, high_of_head,
                    low_of_head, d_m_time + at, scale, cols, first, count, q_s, stride, D, E,
                    WIDTH_D, WIDTH_E, M, SPLIT, False,
                )  # fmt: skip
        d_k_space, d_k_time, d_v_space, d_v_time = state
        d_k_space = factor * (d_k_space - (d_k_time / k_t)[:, None] * keys.to(tl.float32))
        d_v_space += (d_v_time / v_t)[:, None] * values.to(tl.float32)
        put(d_k + kv_at * D, d_k_space, cols, count, kv_stride * D, D, WIDTH_D)
        put(d_v + kv_at * E, d_v_space, cols, count, kv_stride * E, E, WIDTH_E)
