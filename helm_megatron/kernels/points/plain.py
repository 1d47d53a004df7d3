"""Riemannian Adam on rows: tables `[rows, d]` of space coordinates of points of L_c.

A gradient is kept "in the frame": multiplied by the inverse root of the metric, I - x x^T / x_t^2,
it has as its ordinary norm the Riemannian norm of the gradient, so whatever clips ordinary
gradients clips this one rightly. Multiplying once more gives the Riemannian gradient.

All that one step does to a row are six inner products and two sums, x' = a x + b m for the point
and m' = e m + f x for the momentum, since the step, the geodesic and the transported momentum lie
in the plane of x and m. fp32 rows take this step in one go where `kernels.points` has code for it;
what is here is for all others, and what that is tested against.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.kernels.points import op as points

# Rows are worked off in portions of so many entries, which a core's cache holds.
_CPU_PORTION = 1 << 16
# The square of the part of its learning rate that the momentum of a row at rest would move it.
_REST = float(torch.finfo(torch.float32).eps) ** 2


@dataclass(frozen=True)
class Rule:
    """One step's hyperparameters; `step` counts from 1, `c` is the curvature parameter.

    `retraction`: move to x + u in the space chart instead of along the geodesic. `min_norm` bounds
    the norm inside the exponential map from below.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    step: int
    c: float
    retraction: bool = False
    min_norm: float = 0.0


def to_frame_(x: Tensor, grad: Tensor, c: float) -> Tensor:
    """Turn the gradient by space coordinates into that in the frame at x, in place.

    Returns which rows have one, `[rows]`.
    """
    if fused := points.implementation([x, grad]):
        return fused.to_frame_(x, grad, c)

    def work(x: Tensor, grad: Tensor) -> None:
        grad.addcmul_(x, _root(_dot(x, x), c) * _dot(x, grad))

    touched = torch.linalg.vector_norm(grad, dim=-1) != 0
    _each_busy(touched, work, [x, grad])
    return touched


def step_(tables: Sequence[Tensor], touched: Tensor, rule: Rule) -> None:
    """Take one step of points, in place.

    Args:
        tables: x, gradient in the frame, momentum, all `[rows, d]`; the second moment, one number a
            row, in the first column of a table of any width; and, to divide by it instead
            (AMSGrad), the highest so far, likewise. All but the gradient change.
        touched: as `to_frame_` returned it.

    A row that had no gradient for so long that its momentum moves it by less than 1e-7 of the
    learning rate is laid to rest: without momentum it costs nothing until it is touched again. Its
    second moment, which goes on to fade, is negative for a mark.
    """
    if fused := points.implementation(tables):
        fused.step_(tables, touched, _scalars(rule))
        return
    x, grad, momentum, *moments = tables
    moments = [moment[:, :1] for moment in moments]
    second = moments[0]
    # A lower bound on the norm moves every row. What is not a number is no rest.
    busy = touched | ~(second <= 0).squeeze(-1) | (rule.min_norm > 0)
    second.mul_(torch.where(busy.unsqueeze(-1), 1.0, rule.beta2))
    _each_busy(busy, functools.partial(_step_rows, rule), [x, grad, momentum, *moments])


def _scalars(rule: Rule) -> points.Scalars:
    return points.Scalars(
        rate=float(rule.lr) / (1 - rule.beta1**rule.step),
        beta1=rule.beta1,
        beta2=rule.beta2,
        eps=rule.eps,
        correction=1 - rule.beta2**rule.step,
        c=rule.c,
        min_norm=rule.min_norm,
        rest=_REST,
        retraction=rule.retraction,
    )


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
    still = mm <= _REST * v
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
    return rows.split(size) if table.device.type == "cpu" and len(rows) else (rows,)
