"""Random points, tangent vectors and isometries of the hyperboloid for the tests."""

import math
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

SEEDS = st.integers(0, 2**31 - 1)
CURVATURES = st.floats(0.1, 5.0)
RADII = st.sampled_from([0.01, 1.0, 3.0])
DIM = 6


def for_all(*strategies: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """Run a test on 25 draws, the same ones each time."""
    always_the_same = settings(max_examples=25, deadline=None, derandomize=True)
    return lambda test: always_the_same(given(*strategies)(test))


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers drawn in fp64, so that each dtype has the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def points(seed: int, count: int, radius: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Space coordinates `[count, 5, DIM]` of as many batches of points."""
    return (radius * normal(seed, count, 5, DIM)).to(dtype)


def isometry(seed: int, rapidity: float) -> Tensor:
    """A Lorentz transformation `[1 + DIM, 1 + DIM]`: a rotation, then a boost."""
    rotation = torch.linalg.qr(normal(seed, DIM, DIM))[0]
    turned = torch.eye(1 + DIM, dtype=torch.float64)
    turned[1:, 1:] = rotation
    axis = torch.nn.functional.normalize(normal(seed + 1, DIM), dim=0)
    cosh, sinh = math.cosh(rapidity), math.sinh(rapidity)
    boost = torch.eye(1 + DIM, dtype=torch.float64)
    boost[0, 0] = cosh
    boost[0, 1:] = boost[1:, 0] = axis * sinh
    boost[1:, 1:] += (cosh - 1) * torch.outer(axis, axis)
    return boost @ turned


def move(matrix: Tensor, x: Tensor, c: float) -> Tensor:
    """Space coordinates of the image of the points x under a Lorentz transformation."""
    time = (x.square().sum(-1, keepdim=True) + c).sqrt()
    return (torch.cat([time, x], -1) @ matrix.T)[..., 1:]
