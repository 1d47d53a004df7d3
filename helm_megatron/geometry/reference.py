"""The released HELM operations on ambient vectors: slow, plain, and the oracle of the tests.

Points are `[..., 1 + d]`, time first. Formulas, clamps and quirks are those of the authors'
released code (arXiv:2505.24722), which the golden data pins; where that code is wrong, or right for
c = 1 only, the function that mirrors it is called `released_*` and the right one stands beside it.
Meant for fp64: nothing here guards against cancellation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Scalar = float | Tensor


def lift(space: Tensor, c: Scalar, eps: float = 0.0) -> Tensor:
    """The point [sqrt(max(|s|^2 + c, eps)), s] of L_c over the space coordinates `[..., d]`."""
    norm2 = space.square().sum(-1, keepdim=True) + c
    return torch.cat([norm2.clamp_min(eps).sqrt(), space], -1)


def project(x: Tensor, c: Scalar) -> Tensor:
    """Put x `[..., 1 + d]` on L_c by computing its time anew."""
    return lift(x[..., 1:], c)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Minkowski product -x_t y_t + x_s.y_s, `[..., 1]`."""
    p = x * y
    return p[..., 1:].sum(-1, keepdim=True) - p[..., :1]


def pairwise_inner(x: Tensor, y: Tensor) -> Tensor:
    """Minkowski products `[..., n, m]` of x `[..., n, 1 + d]` and y `[..., m, 1 + d]`."""
    return torch.cat([-x[..., :1], x[..., 1:]], -1) @ y.transpose(-1, -2)


def squared_distance(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """Squared Lorentzian distance <x - y, x - y> = -2c - 2<x,y>, `[..., 1]`."""
    return -2 * c - 2 * inner(x, y)


def distance(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """Geodesic distance sqrt(c) arccosh(-<x,y> / c), `[..., 1]`."""
    return _root(c) * _arccosh(-inner(x, y) / c)


def released_distance(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """The release's "induced distance": without the minus sign, so always the clamped minimum."""
    return _root(c) * _arccosh(inner(x, y) / c)


def distance0(x: Tensor, c: Scalar) -> Tensor:
    """Geodesic distance from the origin, `[..., 1]`."""
    return _root(c) * _arccosh(x[..., :1] / _root(c))


def project_tangent(x: Tensor, v: Tensor, c: Scalar) -> Tensor:
    """The part of the ambient vector v that is tangent at x."""
    return v + inner(x, v) * x / c


def riemannian_grad(x: Tensor, grad: Tensor, c: Scalar) -> Tensor:
    """Riemannian gradient of a function of ambient coordinates whose gradient is grad."""
    return project_tangent(x, torch.cat([-grad[..., :1], grad[..., 1:]], -1), c)


def expmap(x: Tensor, u: Tensor, c: Scalar) -> Tensor:
    """Exponential map of u, made tangent first; the norm of u is clamped at 1e-4."""
    u = project_tangent(x, u, c)
    n = _norm(u) / _root(c)
    return project(torch.cosh(n) * x + torch.sinh(n) / n * u, c)


def logmap(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """The tangent vector at x whose exponential is y."""
    direction = y + inner(x, y) / c * x
    return distance(x, y, c) * direction / _norm(direction)


def expmap0(u: Tensor, c: Scalar) -> Tensor:
    """Exponential map at the origin."""
    return expmap(origin(u, c), u, c)


def logmap0(x: Tensor, c: Scalar) -> Tensor:
    """Logarithmic map at the origin."""
    return logmap(origin(x, c), x, c)


def origin(x: Tensor, c: Scalar) -> Tensor:
    """The point (sqrt(c), 0, .., 0), in the shape of x."""
    return lift(torch.zeros_like(x[..., 1:]), c)


def transport(x: Tensor, y: Tensor, u: Tensor, c: Scalar) -> Tensor:
    """Parallel transport of u from x to y, u + <y,u> / (c - <x,y>) (x + y)."""
    return u + inner(y, u) / (c - inner(x, y)) * (x + y)


def released_transport(x: Tensor, y: Tensor, u: Tensor, c: Scalar) -> Tensor:
    """Parallel transport by logarithms, as in the released optimizer.

    Equal to `transport` for tangent u while x and y are more than 1e-4 apart: closer, the clamped
    norms shorten the correction, and the result leaves the tangent space at y.
    """
    log = logmap(x, y, c)
    scale = inner(log, u) / distance(x, y, c).square()
    return u - scale * (log + logmap(y, x, c))


def centroid(x: Tensor, weights: Tensor | None, c: Scalar, eps: float = 1e-8) -> Tensor:
    """Lorentz centroid of x `[..., n, 1 + d]` by weights `[..., m, n]`, or their mean."""
    return _normalize(x.mean(-2) if weights is None else weights @ x, c, eps)


def rescale(x: Tensor, c_from: Scalar, c_to: Scalar) -> Tensor:
    """Map L_{c_from} to L_{c_to} by scaling."""
    return x * (_root(c_to) / _root(c_from))


def to_poincare(x: Tensor, c: Scalar) -> Tensor:
    """Stereographic projection to the Poincare ball of radius sqrt(c)."""
    return _root(c) * x[..., 1:] / (x[..., :1] + _root(c))


def released_to_poincare(x: Tensor, c: Scalar) -> Tensor:
    """The release's projection: it takes c for the curvature itself, so is right for c = 1 only."""
    return x[..., 1:] / (_root(c) * x[..., :1] + 1)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, c: Scalar, c_out: Scalar | None = None
) -> Tensor:
    """LorentzLinear: the space is an affine map, weight `[out, 1 + d]`, of the ambient vector."""
    y = lift(functional.linear(x, weight, bias), c, 1e-8)
    return y if c_out is None else rescale(y, c, c_out)


def rmsnorm(
    x: Tensor, weight: Tensor, c: Scalar, c_out: Scalar | None = None, eps: float = 1e-8
) -> Tensor:
    """RMSNorm of the space coordinates with weight `[d]`."""
    s = x[..., 1:]
    y = lift(s * (s.square().mean(-1, keepdim=True) + eps).rsqrt() * weight, c)
    return y if c_out is None else rescale(y, c, c_out)


def residual(
    x: Tensor,
    f: Tensor,
    weight: Scalar,
    scale: Scalar | None,
    c: Scalar,
    c_out: Scalar | None = None,
) -> Tensor:
    """LorentzResidual: x + weight f normalized, then its space times scale (None: left alone)."""
    z = _normalize(x + weight * f, c, 1e-4)
    if scale is not None:
        z = lift(scale * z[..., 1:], c, 1e-4)
    return z if c_out is None else rescale(z, c, c_out)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    c: Scalar,
    tau: Scalar,
    beta: Scalar = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Full Lorentz attention of points q `[..., n, 1 + d]`, k and v `[..., m, 1 + d]`.

    Scores (2c + 2<q,k>) / tau + beta; mask `[..., n, m]` is True where attention is blocked.
    Returns the centroids of v, `[..., n, 1 + d_v]`.
    """
    scores = (2 * c + 2 * pairwise_inner(q, k)) / tau + beta
    if mask is not None:
        scores = scores.masked_fill(mask, -1e18)
    return _normalize(scores.softmax(-1) @ v, c, 1e-8 if v.dtype == torch.float64 else 1e-6)


def feedforward(
    x: Tensor,
    w1: tuple[Tensor, Tensor],
    w3: tuple[Tensor, Tensor],
    w2: tuple[Tensor, Tensor],
    c: Scalar,
) -> Tensor:
    """SwiGLU w2(silu(w1 x) * w3 x) of Lorentz linears, each a pair of weight and bias."""
    h = functional.silu(functional.linear(x, *w1)) * functional.linear(x, *w3)
    return linear(lift(h, c, 1e-6), *w2, c)


def _root(c: Scalar) -> Scalar:
    return c**0.5


def _norm(u: Tensor) -> Tensor:
    return inner(u, u).clamp_min(1e-8).sqrt()


def _arccosh(x: Tensor) -> Tensor:
    x = x.clamp_min(1 + 1e-8)
    return (x + (x * x - 1).clamp_min(1e-6).sqrt()).log()


def _normalize(z: Tensor, c: Scalar, eps: float) -> Tensor:
    return _root(c) * z / inner(z, z).abs().clamp_min(eps).sqrt()
