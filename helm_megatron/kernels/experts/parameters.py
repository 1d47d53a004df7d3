"""The parameters of an expert as functions of all experts take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Expert(NamedTuple):
    """Parameters of one expert, or their gradients, as they lie on this rank."""

    weight1: Any
    time_weight1: Tensor
    bias1: Tensor | None
    weight2: Any
    time_weight2: Tensor
    bias2: Tensor | None


def by_expert(flat: Sequence[Any]) -> list[Expert]:
    """The experts again of all their parameters in a row."""
    width = len(Expert._fields)
    return [Expert(*flat[i : i + width]) for i in range(0, len(flat), width)]
