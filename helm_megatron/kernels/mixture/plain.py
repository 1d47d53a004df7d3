"""The combination of experts' points in plain torch."""

from __future__ import annotations

from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar, at_least_fp32, normalize, time

# Clamp of |<m,m>| in the released centroid.
EPS = 1e-8


def mixture(
    rows: Tensor, weights: Tensor, slots: Tensor, shared: Tensor | None, c: Scalar
) -> Tensor:
    """The centroid of each token's experts (paper, section on MiCE): sqrt(c) m_s / sqrt(-<m,m>).

    m is the sum of the ambient points, those of the chosen experts by their weights.

    Args:
        rows: points of L_c `[n, d]`, one for each token and expert that it chose.
        weights: of the rows, `[n]`.
        slots: the k rows of each token, `[tokens, k]`.
        shared: points of the shared expert `[tokens, d]`, of weight 1.
        c: curvature of all of them.

    Returns:
        Points of L_c `[tokens, d]` in the dtype of the rows.
    """
    chosen = at_least_fp32(rows)[slots]
    w = weights.to(chosen.dtype)[slots].unsqueeze(-1)
    space, t = (w * chosen).sum(-2), (w * time(chosen, c)).sum(-2)
    if shared is not None:
        space, t = space + at_least_fp32(shared), t + time(shared, c)
    return normalize(t, space, c, eps=EPS).to(rows.dtype)
