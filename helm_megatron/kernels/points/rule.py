"""What a step of Riemannian Adam does to every row alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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

    @property
    def rest(self) -> float:
        """A row rests where the square of its momentum is at most this share of the second."""
        return _REST

    def scalars(self) -> Scalars:
        """The same as numbers, with what all rows would compute alike."""
        return Scalars(
            rate=float(self.lr) / (1 - self.beta1**self.step),
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            correction=1 - self.beta2**self.step,
            c=self.c,
            min_norm=self.min_norm,
            rest=self.rest,
            retraction=self.retraction,
        )


@dataclass(frozen=True)
class Scalars:
    """What compiled code takes of a rule, in this order.

    rate: learning rate, divided by the bias correction of the momentum.
    beta1, beta2, eps: as Adam's.
    correction: bias correction of the second moment.
    c: curvature parameter.
    min_norm: lower bound on the norm inside the exponential map.
    rest: a row rests where the square of its momentum is at most this share of the second moment.
    retraction: straight in the space chart instead of along the geodesic.
    """

    rate: float
    beta1: float
    beta2: float
    eps: float
    correction: float
    c: float
    min_norm: float
    rest: float
    retraction: bool
