"""What must hold of geometry.lorentz on any hyperboloid, whatever its formulas."""

import functools
import inspect

import pytest
import torch
from hypothesis import strategies as st
from spaces import CURVATURES, DIM, RADII, SEEDS, for_all, isometry, move, normal, points
from torch import Tensor
from torch.testing import assert_close

from helm_megatron.geometry import lorentz

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
DTYPES = st.sampled_from(list(TOLERANCE))


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert_close(actual, expected.expand_as(actual), rtol=tolerance, atol=tolerance)


def metric(x: Tensor, u: Tensor, v: Tensor, c: float) -> Tensor:
    """<u,v> of tangent vectors at x, from their time coordinates."""
    dot = functools.partial(torch.sum, dim=-1, keepdim=True)
    return dot(u * v) - dot(x * u) * dot(x * v) / (dot(x * x) + c)


@for_all(SEEDS, CURVATURES, RADII, DTYPES)
def test_points_are_on_the_manifold(seed: int, c: float, r: float, dtype: torch.dtype) -> None:
    (x,) = points(seed, 1, r, dtype)
    close(lorentz.inner(x, x, c), torch.tensor(-c, dtype=dtype), TOLERANCE[dtype] * (1 + r * r))
    assert (lorentz.time(x, c) > 0).all()


@for_all(SEEDS, CURVATURES, RADII, DTYPES)
def test_exp_undoes_log(seed: int, c: float, r: float, dtype: torch.dtype) -> None:
    x, y = points(seed, 2, r, dtype)
    close(lorentz.expmap(x, lorentz.logmap(x, y, c), c), y, TOLERANCE[dtype] * (1 + r))
    close(lorentz.expmap0(lorentz.logmap0(x, c), c), x, TOLERANCE[dtype])


@for_all(SEEDS, CURVATURES, RADII, DTYPES)
def test_log_undoes_exp(seed: int, c: float, r: float, dtype: torch.dtype) -> None:
    x, u = points(seed, 2, r, dtype)
    u = u / (1 + r)
    close(lorentz.logmap(x, lorentz.expmap(x, u, c), c), u, TOLERANCE[dtype] * (1 + r))
    close(lorentz.logmap0(lorentz.expmap0(u, c), c), u, TOLERANCE[dtype])


@for_all(SEEDS, CURVATURES, RADII)
def test_maps_at_the_origin_are_maps_at_a_point(seed: int, c: float, r: float) -> None:
    (u,) = points(seed, 1, r)
    zero = torch.zeros_like(u)
    close(lorentz.expmap0(u, c), lorentz.expmap(zero, u, c), 1e-9)
    close(lorentz.logmap0(u, c), lorentz.logmap(zero, u, c), 1e-9)


@for_all(SEEDS, CURVATURES, RADII)
def test_length_of_log_is_the_distance(seed: int, c: float, r: float) -> None:
    x, y = points(seed, 2, r)
    u = lorentz.logmap(x, y, c)
    close(metric(x, u, u, c).sqrt(), lorentz.distance(x, y, c), 1e-9)


@for_all(SEEDS, CURVATURES, RADII, DTYPES)
def test_distance_is_a_metric(seed: int, c: float, r: float, dtype: torch.dtype) -> None:
    x, y, z = points(seed, 3, r, dtype)
    d = functools.partial(lorentz.distance, c=c)
    close(d(x, y), d(y, x), TOLERANCE[dtype])
    assert (d(x, x) == 0).all()
    assert (d(x, y) > 0).all()
    assert (d(x, z) <= (d(x, y) + d(y, z)) * (1 + TOLERANCE[dtype])).all()


@for_all(SEEDS, CURVATURES, RADII)
def test_distance_is_that_of_arccosh_and_of_the_poincare_ball(seed: int, c: float, r: float):
    x, y = points(seed, 2, r)
    d = lorentz.distance(x, y, c)
    close(d, c**0.5 * torch.acosh(-lorentz.inner(x, y, c) / c), 1e-6)
    p, q = (lorentz.to_poincare(z, c) for z in (x, y))
    norm2 = functools.partial(torch.sum, dim=-1, keepdim=True)
    assert (norm2(p * p) < c).all()
    ratio = norm2((p - q) ** 2) * c / ((c - norm2(p * p)) * (c - norm2(q * q)))
    close(d, 2 * c**0.5 * torch.asinh(ratio.sqrt()), 1e-9)


@for_all(SEEDS, CURVATURES, st.floats(-2, 2))
def test_equivariance_under_isometries(seed: int, c: float, rapidity: float) -> None:
    g = functools.partial(move, isometry(seed, rapidity), c=c)
    x, y = points(seed, 2, 1.0)
    weights = normal(seed + 2, 3, 5).abs()
    close(lorentz.distance(g(x), g(y), c), lorentz.distance(x, y, c), 1e-9)
    close(lorentz.centroid(g(x), weights, c), g(lorentz.centroid(x, weights, c)), 1e-8)
    close(lorentz.centroid(g(x), None, c), g(lorentz.centroid(x, None, c)), 1e-8)
    close(lorentz.residual(g(x), g(y), 0.7, 1.0, c), g(lorentz.residual(x, y, 0.7, 1.0, c)), 1e-8)


@for_all(SEEDS, CURVATURES, RADII)
def test_mean_is_the_centroid_of_equal_weights(seed: int, c: float, r: float) -> None:
    (x,) = points(seed, 1, r)
    equal = torch.full((1, 5), 3.0, dtype=x.dtype)
    close(lorentz.centroid(x, None, c), lorentz.centroid(x, equal, c)[0], 1e-9)
    close(lorentz.centroid(x[:1], None, c), x[0], 1e-9)


@for_all(SEEDS, CURVATURES, RADII, DTYPES)
def test_transport_is_an_isometry(seed: int, c: float, r: float, dtype: torch.dtype) -> None:
    x, y, u, v = points(seed, 4, r, dtype)
    p = functools.partial(lorentz.transport, x, y, c=c)
    exact = metric(*(t.double() for t in (y, p(u), p(v))), c)
    close(exact, metric(x.double(), u.double(), v.double(), c), TOLERANCE[dtype] * (1 + r) ** 4)
    back = lorentz.transport(y, x, p(u), c)
    close(back, u, TOLERANCE[dtype] * (1 + r) ** 3)
    close(p(lorentz.logmap(x, y, c)), -lorentz.logmap(y, x, c), TOLERANCE[dtype] * (1 + r) ** 2)


@for_all(SEEDS, CURVATURES, RADII)
def test_riemannian_grad_represents_the_gradient(seed: int, c: float, r: float) -> None:
    x, grad, v = points(seed, 3, r)
    rgrad = lorentz.riemannian_grad(x, grad, c)
    close(metric(x, rgrad, v, c), (grad * v).sum(-1, keepdim=True), 1e-9)


@for_all(SEEDS, CURVATURES, CURVATURES, RADII)
def test_rescale_scales_distances(seed: int, c: float, c_to: float, r: float) -> None:
    x, y = points(seed, 2, r)
    a, b = (lorentz.rescale(z, c, c_to) for z in (x, y))
    close(lorentz.distance(a, b, c_to), lorentz.distance(x, y, c) * (c_to / c) ** 0.5, 1e-9)
    close(lorentz.rescale(a, c_to, c), x, 1e-12)


@for_all(SEEDS, CURVATURES, RADII, st.floats(0.1, 2), st.floats(0.1, 9))
def test_residual_is_the_normalized_sum(seed: int, c: float, r: float, w: float, scale: float):
    x, f = points(seed, 2, r)
    z_time = lorentz.time(x, c) + w * lorentz.time(f, c)
    close(
        lorentz.residual(x, f, w, scale, c),
        scale * lorentz.normalize(z_time, x + w * f, c),
        1e-9,
    )


@for_all(SEEDS, st.sampled_from([10.0, 100.0]), st.sampled_from([1e-4, 1e-2, 1.0]), st.booleans())
def test_fp32_is_accurate_far_out_and_close_by(seed: int, r: float, step: float, radial: bool):
    """Relative to fp64 from the same fp32 inputs, where -c - <x,y> would keep no digit."""
    x, u = points(seed, 2, 1.0, torch.float32)
    x = r * x
    y = x * (1 + step * u[..., :1]) if radial else x + step * u
    exact = lorentz.distance(x.double(), y.double(), 1.0)
    assert_close(lorentz.distance(x, y, 1.0).double(), exact, rtol=2e-5, atol=0)
    log = lorentz.logmap(x.double(), y.double(), 1.0)
    error = (lorentz.logmap(x, y, 1.0) - log).abs().amax(-1, keepdim=True)
    assert (error <= 1e-5 * log.abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize(
    "name", ["distance", "logmap", "expmap", "expmap0", "logmap0", "transport"]
)
def test_gradient_at_zero(name: str) -> None:
    """Zero tangent vectors, equal points and the origin: values and gradients stay right."""
    x = points(0, 1, 1.0)[0].requires_grad_()
    zero = torch.zeros_like(x).requires_grad_()
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    f = getattr(lorentz, name)
    if name == "distance":
        d = f(x, x.detach().clone().requires_grad_(), c)
        assert (d == 0).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(d.sum(), [x, c]))
    elif name == "logmap":
        assert torch.autograd.gradcheck(lambda a, b, c: f(a, a + b, c), (x, zero, c))
    elif name == "expmap":
        assert torch.autograd.gradcheck(f, (x, zero, c))
        assert torch.autograd.gradcheck(f, (zero, x, c))
    elif name == "transport":
        assert torch.autograd.gradcheck(lambda a, b, c: f(a, a + b, a.sin(), c), (x, zero, c))
    else:
        assert torch.autograd.gradcheck(f, (zero, c))


def test_hyperbolic_functions_are_exact_to_rounding() -> None:
    """Of one dimension the maps are sinh, asinh and cosh, on either side of where series end."""
    r = torch.logspace(-9, 1, 400, dtype=torch.float64).unsqueeze(-1)
    exact = functools.partial(assert_close, rtol=4e-15, atol=0)
    exact(lorentz.expmap0(r, 1.0), r.sinh())
    exact(lorentz.logmap0(r, 1.0), r.asinh())
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    across = torch.cat([torch.zeros_like(r), r], -1)
    exact(lorentz.expmap(x, across, 1.0), torch.cat([r.cosh(), r.sinh()], -1))


def calls() -> dict[str, tuple]:
    x, y, u = points(3, 3, 1.0)
    weights = normal(4, 2, 5).abs()
    return {
        "time": (x,),
        "inner": (x, y),
        "distance": (x, y),
        "normalize": (3 + normal(5, 5, 1).abs() + x.norm(dim=-1, keepdim=True), x),
        "residual": (x, y, torch.tensor(0.7), torch.tensor(2.0)),
        "centroid": (x, weights),
        "expmap": (x, u),
        "logmap": (x, y),
        "expmap0": (u,),
        "logmap0": (x,),
        "transport": (x, y, u),
        "riemannian_grad": (x, u),
        "rescale": (x, torch.tensor(0.5)),
        "to_poincare": (x,),
    }


PER_POINT = ("time", "inner", "distance")


def test_every_function_is_covered() -> None:
    public = {n for n, f in inspect.getmembers(lorentz, inspect.isfunction) if n[0] != "_"}
    without_points = {"at_least_fp32", "computed_in", "cosh_sinhc"}
    assert public == set(calls()) | without_points


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(calls()))
def test_low_precision_is_computed_in_fp32(name: str, dtype: torch.dtype) -> None:
    low = [a.to(dtype) for a in calls()[name]]
    c = torch.tensor(1.3).to(dtype)
    out = getattr(lorentz, name)(*low, c)
    exact = getattr(lorentz, name)(*(a.float() for a in low), c.float())
    assert out.dtype == (torch.float32 if name in PER_POINT else dtype)
    assert torch.equal(out, exact.to(out.dtype))


@pytest.mark.parametrize("name", list(calls()))
def test_fp64_stays_fp64_with_an_fp32_curvature(name: str) -> None:
    c = torch.tensor(1.3)
    out = getattr(lorentz, name)(*calls()[name], c)
    assert out.dtype == torch.float64
    assert_close(out, getattr(lorentz, name)(*calls()[name], c.item()), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in calls() if n != "centroid"])
def test_curvature_per_point(name: str) -> None:
    c = torch.tensor([[0.3], [0.9], [1.0], [2.0], [4.0]], dtype=torch.float64)
    out = getattr(lorentz, name)(*calls()[name], c)
    for i in range(5):
        row = [a[i : i + 1] if a.dim() else a for a in calls()[name]]
        assert_close(out[i : i + 1], getattr(lorentz, name)(*row, c[i].item()))


def test_min_norm_moves_points_outward() -> None:
    x = points(0, 1, 1.0)[0]
    still = torch.zeros_like(x)
    assert torch.equal(lorentz.expmap(x, still, 1.0), x)
    moved = lorentz.expmap(x, still, 1.0, min_norm=1e-4)
    assert_close(moved / x - 1, torch.full_like(x, 5e-9), rtol=1e-6, atol=0)


def test_normalize_clamps_null_vectors() -> None:
    s = normal(0, 3, DIM)
    out = lorentz.normalize(s.norm(dim=-1, keepdim=True), s, 1.0, eps=1e-4)
    assert_close(out, 100 * s)
