"""The Lorentz model of hyperbolic space in its space chart.

A point of L_c = {(x_t, x_s) : -x_t^2 + |x_s|^2 = -c, x_t > 0}, of sectional curvature -1/c, is
given by its space coordinates x_s alone, `[..., d]`. A tangent vector u at x is given by its space
coordinates too; its time coordinate is x_s.u_s / x_t. `c` is a positive float, or a tensor that
broadcasts to `[..., 1]`.

Everything is computed in at least fp32. Points and tangent vectors come back in the dtype of the
first one given, scalars per point in the precision of the computation. Where x or y are large,
differences like x_t y_t - x_s.y_s cancel, so most formulas here are the same sums with the
cancelling terms already removed; `reference` has the plain ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

Scalar = float | Tensor

# Clamp of |<z,z>| in residuals, as in the released code.
RESIDUAL_EPS = 1e-4

# Below these arguments the power series are exact to fp64 rounding.
_COSH_SERIES_BELOW = 1e-2
_ASINH_SERIES_BELOW = 1e-3


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this type are computed in: fp32 for bf16 and fp16, else itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def at_least_fp32(x: Tensor) -> Tensor:
    """Upcast bf16 and fp16 to fp32; fp32 and fp64 pass through. A copy of all of x, or x itself."""
    return x.to(computed_in(x.dtype))


def time(x: Tensor, c: Scalar) -> Tensor:
    """Time coordinate sqrt(|x|^2 + c) of the points x `[..., d]` of L_c, as `[..., 1]`."""
    x = at_least_fp32(x)
    return (_dot(x, x) + _like(c, x)).sqrt()


def inner(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """Minkowski product -x_t y_t + x_s.y_s of the points x and y `[..., d]`, as `[..., 1]`."""
    x, y = at_least_fp32(x), at_least_fp32(y)
    return _dot(x, y) - time(x, c) * time(y, c)


def distance(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """Geodesic distance sqrt(c) arccosh(-<x,y>/c) of x and y `[..., d]`, as `[..., 1]`.

    Computed from the chord, 2 sqrt(c) asinh(|x - y|_L / (2 sqrt(c))), which is accurate for close
    points too. The gradient at x == y is zero.
    """
    x, y = at_least_fp32(x), at_least_fp32(y)
    c = _like(c, x)
    chord2 = _chord2(x, y, c)
    apart = chord2 > 0
    half = torch.where(apart, chord2, 1.0).sqrt() / (2 * c**0.5)
    return torch.where(apart, 2 * c**0.5 * half.asinh(), 0.0)


def normalize(z_time: Tensor, z_space: Tensor, c: Scalar, eps: float = 1e-4) -> Tensor:
    """Project a timelike ambient vector, time `[..., 1]` and space `[..., d]`, on L_c.

    Returns sqrt(c) z_s / sqrt(max(|z_t^2 - |z_s|^2|, eps)); modulus and clamp are the released
    code's.
    """
    z_t, z_s = at_least_fp32(z_time), at_least_fp32(z_space)
    return _normalize(z_s, z_t * z_t - _dot(z_s, z_s), c, eps).to(z_space.dtype)


def residual(
    x: Tensor,
    f: Tensor,
    weight: Scalar,
    scale: Scalar,
    c: Scalar,
    eps: float = RESIDUAL_EPS,
    c_x: Scalar | None = None,
) -> Tensor:
    """LorentzResidual of x and f `[..., d]`: scale * (x + weight f, normalized in ambient space).

    x may be of another curvature c_x than f and the result.

    Of z = x + w f the squared norm -<z,z> is c_x + w^2 c - 2 w <x,f>. Against fp64, in fp32 with
    |x| = 100 this is off by 5e-8 where z_t^2 - |z_s|^2 is off by 1e-7 if f is as large as x, and by
    3e-6 if f is a hundredth of it. (f nearly parallel to x costs both digits: 3e-4 and 6e-4 at an
    angle of 1e-3. The chord form, exact there as well, is not worth its memory on this path.)
    """
    dtype = x.dtype
    x, f = at_least_fp32(x), at_least_fp32(f)
    weight, scale, c = _like(weight, x), _like(scale, x), _like(c, x)
    c_x = c if c_x is None else _like(c_x, x)
    inner_ = _dot(x, f) - time(x, c_x) * time(f, c)
    norm2 = c_x + c * weight * weight - 2 * weight * inner_
    return (scale * _normalize(x + weight * f, norm2, c, eps)).to(dtype)


def centroid(x: Tensor, weights: Tensor | None, c: Scalar, eps: float = 1e-8) -> Tensor:
    """Lorentz centroid: the weighted sum of ambient vectors, normalized to L_c.

    x `[..., n, d]` and weights `[..., m, n]` give `[..., m, d]`; no weights, the mean, `[..., d]`.
    """
    dtype = x.dtype
    x = at_least_fp32(x)
    t = time(x, c)
    if weights is None:
        return normalize(t.mean(-2), x.mean(-2), c, eps).to(dtype)
    weights = weights.to(x.dtype)
    return normalize(weights @ t, weights @ x, c, eps).to(dtype)


def expmap(x: Tensor, u: Tensor, c: Scalar, min_norm: float = 0.0) -> Tensor:
    """Exponential map of the tangent vector u at x, both `[..., d]`.

    min_norm bounds the norm of u from below in cosh(|u|) x + sinh(|u|)/|u| u. The released code has
    1e-4 there, which moves x outward by 5e-9 of itself even for u = 0.
    """
    dtype = x.dtype
    x, u = at_least_fp32(x), at_least_fp32(u)
    c = _like(c, x)
    cosh, sinhc = cosh_sinhc(_tangent_norm2(x, u, c).clamp_min(min_norm**2) / c)
    return (cosh * x + sinhc * u).to(dtype)


def logmap(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """The tangent vector at x whose exponential is y, both `[..., d]`."""
    dtype = x.dtype
    x, y = at_least_fp32(x), at_least_fp32(y)
    c = _like(c, x)
    q = _chord2(x, y, c) / (4 * c)
    # With <x,y> = -c (1 + 2q) the direction y + <x,y> x / c has the norm 2 sqrt(c q (1 + q)).
    return (_asinhc(q) * (1 + q).rsqrt() * (y - x - 2 * q * x)).to(dtype)


def expmap0(u: Tensor, c: Scalar) -> Tensor:
    """Exponential map at the origin (zero space coordinates) of u `[..., d]`."""
    v = at_least_fp32(u)
    return (cosh_sinhc(_dot(v, v) / _like(c, v))[1] * v).to(u.dtype)


def logmap0(x: Tensor, c: Scalar) -> Tensor:
    """The tangent vector at the origin whose exponential is x `[..., d]`."""
    y = at_least_fp32(x)
    return (_asinhc(_dot(y, y) / _like(c, y)) * y).to(x.dtype)


def transport(x: Tensor, y: Tensor, u: Tensor, c: Scalar) -> Tensor:
    """Parallel transport of the tangent vector u at x along the geodesic to y, all `[..., d]`.

    u + <y,u> / (c - <x,y>) (x + y), with <y,u> taken as <y - x,u>, for <x,u> = 0.
    """
    dtype = x.dtype
    x, y, u = at_least_fp32(x), at_least_fp32(y), at_least_fp32(u)
    c = _like(c, x)
    x_t, y_t = time(x, c), time(y, c)
    step, total = y - x, x + y
    product = _dot(step, u) - _dot(step, total) / (x_t + y_t) * _dot(x, u) / x_t
    return (u + product / (2 * c + _chord2(x, y, c) / 2) * total).to(dtype)


def riemannian_grad(x: Tensor, grad: Tensor, c: Scalar) -> Tensor:
    """Riemannian gradient (I + x x^T / c) grad at x, both `[..., d]`.

    grad is the ordinary gradient by the space coordinates. The metric of the chart is
    I - x x^T / (|x|^2 + c), since time is a function of x; this applies its inverse.
    """
    p, g = at_least_fp32(x), at_least_fp32(grad)
    return (g + p * (_dot(p, g) / _like(c, p))).to(x.dtype)


def rescale(x: Tensor, c_from: Scalar, c_to: Scalar) -> Tensor:
    """Map points of L_{c_from} to L_{c_to}: the ambient vector times sqrt(c_to / c_from)."""
    if not isinstance(c_from, Tensor) and not isinstance(c_to, Tensor) and c_from == c_to:
        return x
    y = at_least_fp32(x)
    return (y * (_like(c_to, y) / _like(c_from, y)) ** 0.5).to(x.dtype)


def to_poincare(x: Tensor, c: Scalar) -> Tensor:
    """Stereographic projection sqrt(c) x_s / (x_t + sqrt(c)), to the ball of radius sqrt(c)."""
    y = at_least_fp32(x)
    root = _like(c, y) ** 0.5
    return (root * y / (time(y, c) + root)).to(x.dtype)


def _like(c: Scalar, x: Tensor) -> Scalar:
    """A tensor c in the dtype of the computation, so that sqrt(c) has its precision."""
    return c.to(x.dtype) if isinstance(c, Tensor) else c


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _normalize(z_space: Tensor, norm2: Tensor, c: Scalar, eps: float) -> Tensor:
    return z_space * (_like(c, norm2) ** 0.5 * norm2.abs().clamp_min(eps).rsqrt())


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """|a|^2 |b|^2 - (a.b)^2, as |b|^2 times the square of the part of a across b."""
    b2 = _dot(b, b)
    across = a - b * (_dot(a, b) / b2.clamp_min(torch.finfo(b.dtype).tiny ** 0.5))
    return b2 * _dot(across, across)


def _chord2(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """<x - y, x - y> = -2c - 2<x,y> as a quotient of sums of positive terms.

    It is (4c |x - y|^2 + G) / (2c + 2 x_t y_t + 2 x.y), with G the Gram determinant of x - y and
    x + y. Where x.y < 0 the denominator's x_t y_t + x.y, a difference, is turned into a sum with
    (x_t y_t)^2 - (x.y)^2 = c (c + |x|^2 + |y|^2) + G / 4.
    """
    gram = _gram(x - y, x + y)
    dot = _dot(x, y)
    sum_ = time(x, c) * time(y, c) + dot.abs()
    difference = (c * (c + _dot(x, x) + _dot(y, y)) + gram / 4) / sum_
    return (2 * c * _dot(x - y, x - y) + gram / 2) / (c + torch.where(dot >= 0, sum_, difference))


def _tangent_norm2(x: Tensor, u: Tensor, c: Scalar) -> Tensor:
    """<u,u> = |u|^2 - (x.u)^2 / x_t^2 as a quotient of sums of positive terms."""
    return (c * _dot(u, u) + _gram(u, x)) / (_dot(x, x) + c)


def cosh_sinhc(q: Tensor) -> tuple[Tensor, Tensor]:
    """cosh(r) and sinh(r) / r for r = sqrt(q), q >= 0; smooth at zero."""
    small = q < _COSH_SERIES_BELOW
    r = torch.where(small, 1.0, q).sqrt()
    s = torch.where(small, q, 0.0)
    cosh = 1 + s / 2 * (1 + s / 12 * (1 + s / 30 * (1 + s / 56 * (1 + s / 90))))
    sinhc = 1 + s / 6 * (1 + s / 20 * (1 + s / 42 * (1 + s / 72 * (1 + s / 110))))
    return torch.where(small, cosh, r.cosh()), torch.where(small, sinhc, r.sinh() / r)


def _asinhc(q: Tensor) -> Tensor:
    """asinh(r) / r for r = sqrt(q), q >= 0; smooth at zero."""
    small = q < _ASINH_SERIES_BELOW
    r = torch.where(small, 1.0, q).sqrt()
    s = torch.where(small, q, 0.0)
    series = 1 - s / 6 + s**2 * (3 / 40) - s**3 * (5 / 112) + s**4 * (35 / 1152)
    return torch.where(small, series, r.asinh() / r)
