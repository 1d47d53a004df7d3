"""Experts in plain torch: each on a hyperboloid of its own, with rows brought there and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.kernels.experts.parameters import Expert
from helm_megatron.kernels.linear_tail.plain import add_time_term, gated


def run_experts(
    x: Tensor, counts: Sequence[int], c: float, curvatures: Tensor, experts: Sequence[Expert]
) -> Tensor:
    """Apply each expert, whole on this rank, to its run of rows.

    Args:
        x: points of L_c `[n, hidden]`, sorted by expert.
        counts: how many rows each expert has; they sum to n.
        c: curvature of x and of the result.
        curvatures: c_e of the experts, `[experts]`.
        experts: parameters of each.

    Returns:
        Points of L_c `[n, hidden]`.
    """
    runs = zip(x.split(list(counts)), curvatures, experts, strict=True)
    return torch.cat([_run(rows, c, c_e, expert) for rows, c_e, expert in runs])


def _run(x: Tensor, c: float, c_e: Tensor, expert: Expert) -> Tensor:
    """x' = x sqrt(c_e / c); h = SwiGLU(W1 x'); y = W2 h; y sqrt(c / c_e), with all times at c_e."""
    x = lorentz.rescale(x, c, c_e)
    time = lorentz.time(x, c_e)
    h = gated(x @ expert.weight1.mT, time, expert.time_weight1, expert.bias1)
    time = lorentz.time(h, c_e)
    y = add_time_term(h @ expert.weight2.mT, time, expert.time_weight2, expert.bias2)
    return lorentz.rescale(y, c_e, c)
