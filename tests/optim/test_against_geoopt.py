"""RiemannianAdam against geoopt's on the same problem, in ambient coordinates there."""

from unittest import mock

import pytest
import torch
from torch import Tensor

from helm_megatron.geometry import lorentz, reference
from helm_megatron.optim.riemannian_adam import RiemannianAdam

# What the CPU platform replaces in torch cannot be scripted; as plain functions they will do.
with mock.patch("torch.jit.script", lambda function: function):
    import geoopt

ROWS, DIM, STEPS = 7, 5, 200


def loss_of(point: Tensor, slope: Tensor, target: Tensor) -> Tensor:
    """A function of ambient points with a minimum, and a slope that changes from step to step."""
    return (point - target).square().sum() / 2 + (slope * point).sum()


@pytest.mark.parametrize("c", [0.7, 1.0, 2.3])
def test_two_hundred_steps(c: float) -> None:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    x = torch.nn.Parameter(normal(ROWS, DIM))
    target = reference.lift(normal(ROWS, DIM), c)
    manifold = geoopt.Lorentz(k=c, learnable=False).double()
    p = geoopt.ManifoldParameter(reference.lift(x.detach(), c), manifold=manifold)
    ours = RiemannianAdam([x], lr=0.01, c=c)
    theirs = geoopt.optim.RiemannianAdam([p], lr=0.01, stabilize=1)
    for _ in range(STEPS):
        slope = normal(ROWS, 1 + DIM)
        ours.zero_grad()
        theirs.zero_grad()
        loss_of(torch.cat([lorentz.time(x, c), x], -1), slope, target).backward()
        loss_of(p, slope, target).backward()
        ours.step()
        theirs.step()
    # geoopt bounds the norm of a step from below, as the release does.
    torch.testing.assert_close(x.detach(), p.detach()[..., 1:], rtol=0, atol=2e-8)
