"""A step of Riemannian Adam on rows, fused: which code does it, and what it takes.

Every implementation is a module with `to_frame_(x, grad, c)` and `step_(tables, touched, scalars)`,
which do what their plain twins in `optim.rows` do, for fp32 tables `[rows, d]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scalars:
    """What all rows have in common in a step.

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


def implementation(tables: Sequence[Tensor]) -> ModuleType | None:
    """The module for these tables; None if only the plain twins will do.

    fp32 tables on CUDA go to Triton where it is installed, those on the CPU to C where there is a
    compiler. Points, gradients and momenta, the first three, must be contiguous.
    """
    if not all(table.dtype == torch.float32 for table in tables):
        return None
    if not all(table.is_contiguous() for table in tables[:3]):
        return None
    device = tables[0].device.type
    if device == "cuda" and find_spec("triton"):
        return importlib.import_module("helm_megatron.kernels.points.triton")
    if device == "cpu":
        compiled = importlib.import_module("helm_megatron.kernels.points.cpu")
        return compiled if compiled.is_available() else None
    return None
