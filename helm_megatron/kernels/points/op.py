"""A step of Riemannian Adam on rows: tables `[rows, d]` of space coordinates of points of L_c.

A gradient is kept "in the frame": multiplied by the inverse root of the metric, I - x x^T / x_t^2,
it has as its ordinary norm the Riemannian norm of the gradient, so whatever clips ordinary
gradients clips this one rightly. Multiplying once more gives the Riemannian gradient.

Gradients here are an optimizer's, and have the names that they have there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.points.rule import Rule


def to_frame_(x: Tensor, grad: Tensor, c: float) -> Tensor:
    """Turn the gradient of space coordinates into that in the frame at x, in grad's place.

    Returns which rows have one, `[rows]`.
    """
    return dispatch.for_points([x, grad]).to_frame_(x, grad, c)


def step_(tables: Sequence[Tensor], touched: Tensor, rule: Rule) -> None:
    """Take one step of points, in place.

    Args:
        tables: x, gradient in the frame, momentum, all `[rows, d]`; the second moment, one number a
            row, in the first column of a table of any width; and, to divide by it instead
            (AMSGrad), the highest so far, likewise. All but the gradient change.
        touched: as `to_frame_` returned it.
        rule: the hyperparameters.

    A row that had no gradient for so long that its momentum moves it by less than 1e-7 of the
    learning rate is laid to rest: without momentum it costs nothing until it is touched again. Its
    second moment, which goes on to fade, is negative for a mark.
    """
    dispatch.for_points(tables).step_(tables, touched, rule)
