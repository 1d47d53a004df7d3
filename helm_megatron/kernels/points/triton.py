"""Riemannian Adam's rows on CUDA: one program a row, which reads and writes it once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from helm_megatron.kernels.points.rule import Rule


@triton.jit
def _root(xx, c):
    return 1 / (c * (tl.sqrt(1 + xx / c) + 1))


@triton.jit
def _at_least(value, bound):
    # What is not a number stays.
    return tl.where(value < bound, bound, value)


@triton.jit
def _cosh_sinhc(q):
    """cosh(r) and sinh(r) / r for r = sqrt(q); series where the exponentials cancel."""
    r = tl.sqrt(tl.where(q < 1, 1.0, q))
    up, down = tl.exp(r), tl.exp(-r)
    cosh = 1 + q / 2 * (1 + q / 12 * (1 + q / 30 * (1 + q / 56 * (1 + q / 90))))
    sinhc = 1 + q / 6 * (1 + q / 20 * (1 + q / 42 * (1 + q / 72 * (1 + q / 110))))
    return tl.where(q < 1, cosh, (up + down) / 2), tl.where(q < 1, sinhc, (up - down) / (2 * r))


@triton.jit
def _geodesic(xx, xm, mm, rate, c, min_norm):
    norm2 = _at_least(mm - xm * xm / (xx + c), 0.0)
    q = _at_least(rate * rate * norm2, min_norm * min_norm) / c
    cosh, sinhc = _cosh_sinhc(q)
    return cosh, -rate * sinhc, cosh, -rate * sinhc * norm2 / c


@triton.jit
def _straight(xx, xm, mm, rate, c):
    x_t = tl.sqrt(xx + c)
    moved = rate * (rate * mm - 2 * xm)
    time_step = moved / (tl.sqrt(_at_least(xx + moved + c, 0.0)) + x_t)
    product = -time_step * xm / x_t - rate * mm
    chord2 = rate * rate * mm - time_step * time_step
    share = product / (2 * c + chord2 / 2)
    return xx * 0 + 1, -rate, 1 - share * rate, 2 * share


@triton.jit
def _to_frame(x, g, touched, d, c, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    grad = tl.load(g + row * d + columns, mask=inside, other=0.0)
    any_ = tl.max((grad != 0).to(tl.int32), 0)
    tl.store(touched + row, any_.to(tl.int8))
    if any_ > 0:
        point = tl.load(x + row * d + columns, mask=inside, other=0.0)
        share = _root(tl.sum(point * point, 0), c) * tl.sum(point * grad, 0)
        tl.store(g + row * d + columns, grad + share * point, mask=inside)


@triton.jit
def _step(
    x, h, m, second, second_stride, highest, highest_stride, touched, d,
    rate, beta1, rest_of_beta1, beta2, rest_of_beta2, eps, correction, c, min_norm, rest,
    RETRACTION: tl.constexpr, HIGHEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    second += row * second_stride
    v, is_touched = tl.load(second), tl.load(touched + row) != 0
    busy = is_touched | (v > 0) | (v != v) | (min_norm > 0)
    if busy:
        columns = tl.arange(0, BLOCK)
        inside = columns < d
        place = row * d + columns
        point = tl.load(x + place, mask=inside, other=0.0)
        grad = tl.load(h + place, mask=columns < tl.where(is_touched, d, 0), other=0.0)
        xx, xh = tl.sum(point * point, 0), tl.sum(point * grad, 0)
        momentum = beta1 * tl.load(m + place, mask=inside, other=0.0)
        momentum += rest_of_beta1 * grad + rest_of_beta1 * _root(xx, c) * xh * point
        v = beta2 * tl.abs(v) + rest_of_beta2 * tl.sum(grad * grad, 0)
        bound = v
        if HIGHEST:
            bound = _at_least(v, tl.load(highest + row * highest_stride))
            tl.store(highest + row * highest_stride, bound)
        rate = rate / (tl.sqrt(bound / correction) + eps)
        xm, mm = tl.sum(point * momentum, 0), tl.sum(momentum * momentum, 0)
        if RETRACTION:
            a, b, e, f = _straight(xx, xm, mm, rate, c)
        else:
            a, b, e, f = _geodesic(xx, xm, mm, rate, c, min_norm)
        still = (mm <= rest * v) & (min_norm <= 0)
        tl.store(second, tl.where(still, -v, v))
        e, f = tl.where(still, 0.0, e), tl.where(still, 0.0, f)
        tl.store(x + place, a * point + b * momentum, mask=inside)
        tl.store(m + place, e * momentum + f * point, mask=inside)
    else:
        tl.store(second, v * beta2)


def to_frame_(x: Tensor, grad: Tensor, c: float) -> Tensor:
    """As `points.op.to_frame_`, of contiguous fp32 tables; the host waits for nothing."""
    n, d = x.shape
    touched = torch.empty(n, dtype=torch.bool, device=x.device)
    if n:
        _to_frame[(n,)](x, grad, touched.view(torch.int8), d, c, **_launch(d))
    return touched


def step_(tables: Sequence[Tensor], touched: Tensor, rule: Rule) -> None:
    """As `points.op.step_`, of contiguous fp32 tables but for the moments."""
    x, grad, momentum, second, *rest_of_tables = tables
    n, d = x.shape
    if n == 0:
        return
    highest = rest_of_tables[0] if rest_of_tables else second
    scalars = rule.scalars()
    _step[(n,)](
        *(x, grad, momentum, second, second.stride(0), highest, highest.stride(0)),
        *(touched.view(torch.int8), d, scalars.rate, scalars.beta1, 1 - scalars.beta1),
        *(scalars.beta2, 1 - scalars.beta2, scalars.eps, scalars.correction),
        *(scalars.c, scalars.min_norm, scalars.rest),
        RETRACTION=scalars.retraction,
        HIGHEST=bool(rest_of_tables),
        **_launch(d),
    )


def _launch(d: int) -> dict[str, int]:
    block = triton.next_power_of_2(d)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}
