"""geometry.lorentz on space coordinates against geometry.reference on ambient ones.

Outputs and the gradients by every argument, the curvature parameter included, in fp64; then outputs
in fp32 and bf16 against the fp64 oracle on the same rounded inputs.
"""

from collections.abc import Callable

import pytest
import torch
from spaces import CURVATURES, RADII, SEEDS, for_all, normal, points
from torch import Tensor

from helm_megatron.geometry import lorentz, reference

lift = reference.lift


def tangent(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
    return torch.cat([(x * u).sum(-1, keepdim=True) / lift(x, c)[..., :1], u], -1)


def between(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, y, c: operation(lift(x, c), lift(y, c), c)


def space(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: operation(*arguments)[..., 1:]


def reference_grad(x: Tensor, grad: Tensor, c: Tensor) -> Tensor:
    # A function of the space coordinates, seen as one of the ambient point, has no time gradient.
    ambient = torch.cat([torch.zeros_like(grad[..., :1]), grad], -1)
    return reference.riemannian_grad(lift(x, c), ambient, c)


def reference_transport(x: Tensor, y: Tensor, u: Tensor, c: Tensor) -> Tensor:
    return reference.transport(lift(x, c), lift(y, c), tangent(x, u, c), c)


# Name: how many points or vectors it takes, and the oracle.
OPERATIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "time": (1, lambda x, c: lift(x, c)[..., :1]),
    "inner": (2, lambda x, y, c: reference.inner(lift(x, c), lift(y, c))),
    "distance": (2, between(reference.distance)),
    "expmap": (2, space(lambda x, u, c: reference.expmap(lift(x, c), tangent(x, u, c), c))),
    "logmap": (2, space(between(reference.logmap))),
    "expmap0": (1, space(lambda u, c: reference.expmap0(tangent(torch.zeros_like(u), u, c), c))),
    "logmap0": (1, space(lambda x, c: reference.logmap0(lift(x, c), c))),
    "transport": (3, space(reference_transport)),
    "riemannian_grad": (2, space(reference_grad)),
    "to_poincare": (1, lambda x, c: reference.to_poincare(lift(x, c), c)),
}


def residual_pair(x: Tensor, f: Tensor, w: Tensor, scale: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    ambient = reference.residual(lift(x, c), lift(f, c), w, scale, c)
    return lorentz.residual(x, f, w, scale, c), ambient[..., 1:]


def centroid_pair(x: Tensor, weights: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    ambient = reference.centroid(lift(x, c), weights, c)
    return lorentz.centroid(x, weights, c), ambient[..., 1:]


def error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def assert_same(pair: tuple[Tensor, ...], leaves: list[Tensor], tolerance: float = 1e-9) -> None:
    """Both outputs agree, and their gradients by the leaves for one random cotangent."""
    ours, oracle = pair
    assert error(ours, oracle) <= tolerance
    cotangent = normal(1, *ours.shape)
    ours_grads = torch.autograd.grad(ours, leaves, cotangent)
    oracle_grads = torch.autograd.grad(oracle, leaves, cotangent)
    for i, grads in enumerate(zip(ours_grads, oracle_grads, strict=True)):
        assert error(*grads) <= tolerance, f"gradient {i}"


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", OPERATIONS)
@for_all(SEEDS, CURVATURES)
def test_operation(name: str, seed: int, value: float) -> None:
    count, oracle = OPERATIONS[name]
    leaves = [x.requires_grad_() for x in points(seed, count, 1.0)]
    leaves.append(scalar(value))
    assert_same((getattr(lorentz, name)(*leaves), oracle(*leaves)), leaves)


@for_all(SEEDS, CURVATURES, RADII)
def test_residual(seed: int, value: float, radius: float) -> None:
    leaves = [x.requires_grad_() for x in points(seed, 2, radius)]
    leaves += [scalar(0.7), scalar(5.0), scalar(value)]
    assert_same(residual_pair(*leaves), leaves)


@for_all(SEEDS, CURVATURES, RADII)
def test_centroid(seed: int, value: float, radius: float) -> None:
    weights = normal(seed + 1, 2, 5).abs().requires_grad_()
    leaves = [points(seed, 1, radius)[0].requires_grad_(), weights, scalar(value)]
    assert_same(centroid_pair(*leaves), leaves)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("name", OPERATIONS)
@for_all(SEEDS, CURVATURES)
def test_low_precision(
    name: str, dtype: torch.dtype, tolerance: float, seed: int, value: float
) -> None:
    """Half a unit in the last place of bf16 is 2e-3 of a number."""
    count, oracle = OPERATIONS[name]
    low = points(seed, count, 1.0, dtype)
    c = torch.tensor(value, dtype=torch.float32)
    expected = oracle(*low.double(), c.double())
    assert error(getattr(lorentz, name)(*low, c).double(), expected) <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
@for_all(SEEDS, CURVATURES, RADII)
def test_low_precision_residual(
    dtype: torch.dtype, tolerance: float, seed: int, value: float, radius: float
) -> None:
    x, f = points(seed, 2, radius, dtype)
    c, weight, scale = torch.tensor(value), torch.tensor(0.7), torch.tensor(5.0)
    ours = lorentz.residual(x, f, weight, scale, c)
    _, oracle = residual_pair(*(t.double() for t in (x, f, weight, scale, c)))
    assert error(ours.double(), oracle) <= tolerance
