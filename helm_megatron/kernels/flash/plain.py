"""Lorentz attention written out: slow, quadratic in memory, and the twin of the fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import Scalar, at_least_fp32


def lorentz_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: Scalar,
    c: Scalar,
    mask: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Attention of points q, k `[s, b, heads, d]` and v `[s, b, heads, e]` of L_c.

    Scores are 2 <q,k> / tau; k and v may have fewer heads, each for as many consecutive ones of q.
    The mask, broadcast to `[b, heads, s, s]`, is True where attention is blocked; without one
    attention is causal. Returns the centroids in ambient coordinates, `[s, b, heads, 1 + e]`, in
    q's dtype; computed in at least fp32.
    """
    dtype, group = q.dtype, q.shape[2] // k.shape[2]
    if mask is None:
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(1)
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    q, k, v = (at_least_fp32(x).permute(1, 2, 0, 3) for x in (q, k, v))
    products = q @ k.mT - lorentz.time(q, c) * lorentz.time(k, c).mT
    weights = (2 / tau * products).masked_fill(mask, -torch.inf).softmax(-1)
    space = lorentz.normalize(weights @ lorentz.time(v, c), weights @ v, c, eps)
    return torch.cat([lorentz.time(space, c), space], dim=-1).permute(2, 0, 1, 3).to(dtype)
