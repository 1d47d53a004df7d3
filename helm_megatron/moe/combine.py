"""How the outputs of the shared and the chosen experts become one point.

Both rules work on ambient rows `[.., d + 1]`, space coordinates first and the time last, in fp32:
m_t^2 - |m_s|^2 cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels.mixture.plain import EPS
from helm_megatron.layers.residual import LorentzResidual
from helm_megatron.transformer_config import HelmTransformerConfig


def ambient(points: Tensor, c: float) -> Tensor:
    """(y_s, y_t) of points `[n, d]` of L_c, as `[n, d + 1]` in fp32."""
    return torch.cat([at_least_fp32(points), lorentz.time(points, c)], dim=-1)


def centroid(total: Tensor, shared: Tensor | None, c: float) -> Tensor:
    """The centroid of HELM (paper, section on MiCE): sqrt(c) m_s / sqrt(-<m,m>).

    For sums made elsewhere; `kernels.mixture.op` makes its own.

    m is the weighted ambient sum `total` `[.., d + 1]` plus the shared expert's point `[.., d]`,
    whose weight is 1. Returns space coordinates `[.., d]`.
    """
    space, time = total[..., :-1], total[..., -1:]
    if shared is not None:
        space, time = space + at_least_fp32(shared), time + lorentz.time(shared, c)
    return lorentz.normalize(time, space, c, eps=EPS)


def slots_of(routing_map: Tensor, k: int) -> Tensor:
    """Which rows are a token's, `[tokens, k]` in order of the experts.

    Megatron's permutation sorts rows by expert, then by token. `routing_map` `[tokens, experts]`
    has k experts for each token.
    """
    by_expert = routing_map.T
    row = by_expert.reshape(-1).cumsum(0).view(by_expert.shape).T - 1
    chosen = routing_map.byte().argsort(dim=1, descending=True, stable=True)[:, :k]
    return row.gather(1, chosen)


def fold(points: Tensor, weights: Tensor, c: float) -> Tensor:
    """The released sum of chosen experts: residuals of scale 2, from the origin, in given order.

    points `[tokens, k, d]`, weights `[tokens, k]`; returns `[tokens, d]` in fp32.
    """
    points = at_least_fp32(points)
    y = torch.zeros_like(points[:, 0])
    for i in range(points.shape[1]):
        y = lorentz.residual(y, points[:, i], weights[:, i, None], 2.0, c)
    return y


class AddExperts(LorentzResidual):
    """The released sum of the shared expert's point and the folded ones: its scale is learned."""

    def __init__(self, config: HelmTransformerConfig) -> None:
        super().__init__(config, scale=2.0, learn_scale=True)
