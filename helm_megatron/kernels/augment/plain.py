"""Lorentz attention as dot-product attention: heads with their times beside them.

The scores of Lorentz attention, (2c + 2<q,k>) / tau, are up to a constant a dot product of
q' = (2/tau) (q_s, -q_t) and k' = (k_s, k_t), and the centroid needs only sum_j p_j (v_s, v_t). So
any dot-product kernel computes it exactly, in memory linear in the sequence, followed by one
normalization per head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import Scalar, at_least_fp32
from helm_megatron.kernels.augment.lanes import augmented_width, is_wide
from helm_megatron.kernels.augment.rotary import Tables, turned

# Clamp of |<m,m>| in the centroid, by precision of the computation, as in the released code.
CENTROID_EPS = {torch.float32: 1e-6, torch.float64: 1e-8}


def split_time(time: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Carry an fp32 time `[.., 1]` in dtype: itself if that is wide enough, else high and low part.

    One bf16 lane would lose the whole of q_t k_t - q_s.k_s at moderate radii.
    """
    high = time.to(dtype)
    if is_wide(dtype):
        return [high]
    return [high, (time - high.to(time.dtype)).to(dtype)]


def _augmented(space: Tensor, *lanes: Tensor) -> Tensor:
    """Space coordinates, then time lanes, then zeros up to the width of the kernel."""
    d = space.shape[-1]
    zeros = augmented_width(space.dtype, d, len(lanes)) - d - len(lanes)
    return F.pad(torch.cat([space, *lanes], dim=-1), (0, zeros))


def augment_query(q: Tensor, tau: Tensor, c: Scalar) -> Tensor:
    """(2/tau) (q_s, -q_t) of q `[.., d]`, with the lanes that go with `augment_key`.

    The time is taken of the scaled and rounded space part, so the query lies on its hyperboloid
    of curvature c (2/tau)^2 exactly.
    """
    factor = 2 / at_least_fp32(tau)
    scaled = (at_least_fp32(q) * factor).to(q.dtype)
    lanes = split_time(lorentz.time(scaled, c * factor * factor), q.dtype)
    if len(lanes) == 1:
        return _augmented(scaled, -lanes[0])
    high, low = lanes
    return _augmented(scaled, -high, -high, -low)


def augment_key(k: Tensor, c: Scalar) -> Tensor:
    """(k_s, k_t) of k `[.., d]`; in low precision the time as (high, low, high)."""
    lanes = split_time(lorentz.time(k, c), k.dtype)
    return _augmented(k, *lanes, lanes[0]) if len(lanes) == 2 else _augmented(k, *lanes)


def augment_value(v: Tensor, c: Scalar, shift: Tensor | float = 0.0) -> Tensor:
    """(v_s, v_t - shift) of v `[.., d]`; in low precision the time as (high, low)."""
    return _augmented(v, *split_time(lorentz.time(v, c) - shift, v.dtype))


def augment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: Tensor,
    c: Scalar,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Augmented query, key and value, turned first if rotary is given."""
    if rotary is not None:
        q, k = turned(q, rotary), turned(k, rotary)
    less = 0.0 if shift is None else shift
    return augment_query(q, tau, c), augment_key(k, c), augment_value(v, c, less)


def centroid(m: Tensor, d: int, c: Scalar, shift: Tensor | None = None) -> Tensor:
    """Normalize sums of augmented values `[.., d + lanes]` to ambient points `[.., 1 + d]` of L_c.

    shift is what the times of the values were less by. |<m,m>| is clamped at `CENTROID_EPS`.
    """
    wide = at_least_fp32(m)
    m_time = wide[..., d:].sum(-1, keepdim=True) + (0.0 if shift is None else shift)
    space = lorentz.normalize(m_time, wide[..., :d], c, eps=CENTROID_EPS[wide.dtype])
    return torch.cat([lorentz.time(space, c), space], dim=-1).to(m.dtype)
