"""What a comparison of two layouts finds, and how much of a difference rounding explains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The largest entry of the difference of one tensor, and of what it is measured against."""

    name: str
    error: float
    scale: float

    def relative(self, floor: float) -> float:
        """Error by scale; the floor is a scale below which the error is not rounding's share."""
        return self.error / (self.scale + floor) if self.error else 0.0


@dataclass(frozen=True)
class Run:
    """What one layout computes: the loss of step 0, loss and gradient norm of trained steps."""

    loss: float
    training: list[list[float]]


@dataclass(frozen=True)
class Comparison:
    """A layout's run, and how one rank's gradients, trained tensors and initial ones differ.

    The initial ones are there if they were compared.
    """

    run: Run
    gradients: list[Difference]
    trained: list[Difference]
    initial: list[Difference]


@dataclass(frozen=True)
class Tolerances:
    """Largest relative differences that are rounding, with the floors of their scales.

    A gradient of a scalar is a long sum of terms of both signs, hence the floor. Trained tensors
    are measured against the way they went.
    """

    loss: float
    gradient: float
    gradient_floor: float
    training: float
    trained: float
    trained_floor: float


FP64 = Tolerances(1e-12, 1e-10, 0.0, 1e-11, 1e-9, 1e-9)
FP32 = Tolerances(1e-6, 2e-5, 5e-3, 1e-5, 1e-4, 1e-3)
# Inputs of matrix products are rounded to 10 bits, differently where they differ at all.
TF32 = Tolerances(1e-4, 1e-2, 5e-3, 1e-2, 5e-2, 1e-3)
# 8 bits everywhere: this finds a lost shard, not a lost gradient of a few tokens.
BF16 = Tolerances(2e-2, 0.25, 5e-3, 0.2, 0.5, 1e-3)


def worst_first(differences: Iterable[Difference], floor: float) -> list[tuple[float, Difference]]:
    """With their relative sizes, the largest first; what is not a number is largest."""
    found = [(d.relative(floor), d) for d in differences]
    return sorted(found, key=lambda pair: -pair[0] if pair[0] == pair[0] else -math.inf)


def wrong(
    differences: Iterable[Difference], relative: float, floor: float
) -> list[tuple[float, Difference]]:
    """Those that rounding does not explain, the largest first."""
    return [pair for pair in worst_first(differences, floor) if not pair[0] <= relative]
