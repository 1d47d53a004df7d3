"""The geometry of a table of token embeddings: radii, tree-likeness, a picture in the disk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from helm_megatron.analysis import SAMPLES
from helm_megatron.geometry import lorentz


def radii(points: Tensor, c: float) -> Tensor:
    """Geodesic distance `[n]` of points `[n, d]` of L_c to the origin, in at least fp32."""
    wide = torch.float64 if points.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(points, dim=-1, dtype=wide)
    return math.sqrt(c) * torch.asinh(norm / math.sqrt(c))


def sample(tokens: int, generator: torch.Generator, samples: int = SAMPLES) -> Tensor:
    """Indices of some of so many tokens, or of all of them if they are fewer."""
    return torch.randperm(tokens, generator=generator)[:samples]


def distances(points: Tensor, c: float | None) -> Tensor:
    """Distances `[n, n]` of points `[n, d]`: geodesic in L_c, or Euclidean without a c."""
    points = points.double()
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    if c is None:
        return apart
    # The chord in ambient space: its square is 4 c sinh^2 of half the distance over sqrt(c).
    time = lorentz.time(points, c)
    chord2 = (apart.square() - (time - time.T).square()).clamp_min(0)
    return 2 * math.sqrt(c) * torch.asinh(chord2.sqrt() / (2 * math.sqrt(c)))


def relative_hyperbolicity(apart: Tensor) -> float:
    """2 delta / diameter of a metric `[n, n]`: 0 for a tree or a single place, 1 at most.

    delta is Gromov's, of the four-point condition with the first point as base: the largest
    entry of A o A - A, A the Gromov products and o the (max, min) matrix product. It is at most
    twice as large for another base.
    """
    products = (apart[:1] + apart[:, :1] - apart) / 2
    excess = [(torch.minimum(row[:, None], products).amax(0) - row).max() for row in products]
    tiny = torch.finfo(apart.dtype).tiny
    return (2 * torch.stack(excess).max() / apart.max().clamp_min(tiny)).item()


def shuffled(points: Tensor, generator: torch.Generator) -> Tensor:
    """Points with each coordinate permuted by itself: the same spread, without structure."""
    order = torch.rand(points.shape, generator=generator).argsort(0)
    return points.gather(0, order)


def disk(points: Tensor, c: float) -> Tensor:
    """Points `[n, d]` of L_c in the Poincare disk `[n, 2]`.

    The centroid goes to the origin, and of the tangent vectors there the two directions in which
    they vary most are kept: the hyperbolic counterpart of two principal components.
    """
    points = points.double()
    middle = lorentz.centroid(points, None, c).expand_as(points)
    tangent = lorentz.logmap(middle, points, c)
    origin = torch.zeros_like(points)
    tangent = lorentz.transport(middle, origin, tangent, c)
    _, _, directions = torch.linalg.svd(tangent, full_matrices=False)
    plane = tangent @ directions[:2].T
    return lorentz.to_poincare(lorentz.expmap0(plane, c), c) / c**0.5
