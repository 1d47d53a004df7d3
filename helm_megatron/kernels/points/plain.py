"""Riemannian Adam on rows in plain torch.

All that one step does to a row are six inner products and two sums, x' = a x + b m for the point
and m' = e m + f x for the momentum, since the step, the geodesic and the transported momentum lie
in the plane of x and m.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.points.rule import Rule

# Rows are worked off in portions of so many entries, which a core's cache holds.
_CPU_PORTION = 1 << 16


def to_frame_(x: Tensor, grad: Tensor, c: float) -> Tensor:
    """grad `[rows, d]` times (I + x x^T / c)^(1/2) in place; returns which rows have one."""

    def work(x: Tensor, grad: Tensor) -> None:
        grad.addcmul_(x, _root(_dot(x, x), c) * _dot(x, grad))

    touched = torch.linalg.vector_norm(grad, dim=-1) != 0
    _each_busy(touched, work, [x, grad])
    return touched


def step_(tables: Sequence[Tensor], touched: Tensor, rule: Rule) -> None:
    """As `points.op.step_`."""
    x, grad, momentum, *moments = tables
    moments = [moment[:, :1] for moment in moments]
    second = moments[0]
    # A lower bound on the norm moves every row. What is not a number is no rest.
    busy = touched | ~(second <= 0).squeeze(-1) | (rule.min_norm > 0)
    second.mul_(torch.where(busy.unsqueeze(-1), 1.0, rule.beta2))
    _each_busy(busy, functools.partial(_step_rows, rule), [x, grad, momentum, *moments])


def _step_rows(
    rule: Rule, x: Tensor, h: Tensor, m: Tensor, second: Tensor, highest: Tensor | None = None
) -> None:
    c, beta1, beta2 = rule.c, rule.beta1, rule.beta2
    xx = _dot(x, x)
    m.mul_(beta1).add_(h, alpha=1 - beta1).addcmul_(x, (1 - beta1) * _root(xx, c) * _dot(x, h))
    v = second.abs().lerp(_dot(h, h), 1 - beta2)
    xm, mm = _dot(x, m), _dot(m, m)
    bound = v
    if highest is not None:
        bound = torch.maximum(highest, v)
        highest.copy_(bound)
    rate = rule.lr / (1 - beta1**rule.step)
    rate = rate / ((bound / (1 - beta2**rule.step)).sqrt() + rule.eps)
    a, b, e, f = (_straight if rule.retraction else _geodesic)(xx, xm, mm, rate, rule)
    still = mm <= rule.rest * v
    if rule.min_norm:
        still = torch.zeros_like(still)
    second.copy_(torch.where(still, -v, v))
    e, f = e.masked_fill(still, 0), f.masked_fill(still, 0)
    old = x.clone()
    x.mul_(a).addcmul_(m, b)
    m.mul_(e).addcmul_(old, f)


Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


def _geodesic(xx: Tensor, xm: Tensor, mm: Tensor, rate: Tensor, rule: Rule) -> Coefficients:
    """Of x' = exp_x(-rate m) and of m moved in parallel to x'."""
    c = rule.c
    # <m,m> of the tangent vector; rounding must not make it negative.
    norm2 = (mm - xm * xm / (xx + c)).clamp_min(0)
    q = (rate * rate * norm2).clamp_min(rule.min_norm**2) / c
    cosh, sinhc = lorentz.cosh_sinhc(q)
    return cosh, -rate * sinhc, cosh, -rate * sinhc * norm2 / c


def _straight(xx: Tensor, xm: Tensor, mm: Tensor, rate: Tensor, rule: Rule) -> Coefficients:
    """Of x' = x - rate m in the space chart, and of m moved in parallel from x to x'.

    That is m + <x',m> / (c - <x,x'>) (x + x'), with the differences x' - x written out.
    """
    c = rule.c
    x_t = (xx + c).sqrt()
    moved = rate * (rate * mm - 2 * xm)
    time_step = moved / ((xx + moved + c).clamp_min(0).sqrt() + x_t)
    product = -time_step * xm / x_t - rate * mm
    chord2 = rate * rate * mm - time_step * time_step
    share = product / (2 * c + chord2 / 2)
    return torch.ones_like(rate), -rate, 1 - share * rate, 2 * share


def _root(xx: Tensor, c: float) -> Tensor:
    """The k with (I + k x x^T)^2 = I + x x^T / c, for |x|^2 = xx."""
    return 1 / (c * ((1 + xx / c).sqrt() + 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _each_busy(busy: Tensor, work: Callable[..., None], tables: Sequence[Tensor]) -> None:
    """Call `work` on the busy rows of the tables, portion by portion; it changes them in place."""
    if not busy.all():
        for indices in _portions(busy.nonzero().squeeze(-1), tables[0]):
            chosen = [table[indices] for table in tables]
            work(*chosen)
            for table, changed in zip(tables, chosen, strict=True):
                table[indices] = changed
        return
    # Views, so nothing has to be put back.
    for portion in zip(*(_portions(table, tables[0]) for table in tables), strict=True):
        work(*portion)


def _portions(rows: Tensor, table: Tensor) -> Sequence[Tensor]:
    """`rows`, one for each row of the table or for some, split for the device of the table."""
    size = max(1, _CPU_PORTION // max(table.shape[-1], 1))
    return rows.split(size) if dispatch.on_cpu(table) and len(rows) else (rows,)
