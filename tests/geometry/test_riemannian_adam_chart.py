"""RiemannianAdam: agreement with the released update over many steps, and what geometry demands."""

import copy
from typing import Any

import pytest
import torch
from spaces import isometry, move, normal
from torch import Tensor

from helm_megatron.geometry import lorentz, reference
from helm_megatron.optim.riemannian_adam import RiemannianAdam

ROWS, DIM = 5, 6


class ReleasedAdam:
    """The released optimizer on ambient points, written down with geometry.reference."""

    def __init__(self, x: Tensor, lr: float, c: float, stabilize: int | None) -> None:
        self.x, self.lr, self.c, self.stabilize = x, lr, c, stabilize
        self.m, self.v, self.steps = torch.zeros_like(x), torch.zeros_like(x[..., :1]), 0

    def step(self, grad: Tensor) -> None:
        self.steps += 1
        x, c = self.x, self.c
        grad = reference.riemannian_grad(x, grad, c)
        self.m = 0.9 * self.m + 0.1 * grad
        self.v = 0.999 * self.v + 0.001 * reference.inner(grad, grad)
        denominator = (self.v / (1 - 0.999**self.steps)).sqrt() + 1e-8
        u = -self.lr * self.m / (1 - 0.9**self.steps) / denominator
        self.x = reference.expmap(x, u, c)
        self.m = reference.released_transport(x, self.x, self.m, c)
        if self.stabilize and self.steps % self.stabilize == 0:
            self.x = reference.project(self.x, c)
            self.m = reference.project_tangent(self.x, self.m, c)


def compare(lr: float, c: float, stabilize: int | None, min_norm: float = 1e-4) -> float:
    """Largest relative difference of points and momenta over 50 steps."""
    x = torch.nn.Parameter(normal(0, ROWS, DIM))
    ours = RiemannianAdam([x], lr=lr, c=c, min_norm=min_norm)
    released = ReleasedAdam(reference.lift(x.detach(), c), lr, c, stabilize)
    # A drift that all gradients share keeps the steps near lr; noise alone would average out.
    drift, worst = normal(1, ROWS, 1 + DIM), 0.0
    for step in range(50):
        grad = drift + normal(2 + step, ROWS, 1 + DIM)
        x_t = lorentz.time(x.detach(), c)
        x.grad = grad[..., 1:] + grad[..., :1] * x.detach() / x_t
        ours.step()
        released.step(grad)
        pairs = [(x.detach(), released.x), (ours.state[x]["exp_avg"], released.m)]
        for actual, expected in pairs:
            difference = (actual - expected[..., 1:]).abs().max() / expected[..., 1:].abs().max()
            worst = max(worst, difference.item())
    return worst


@pytest.mark.parametrize("c", [0.5, 1.0, 2.3])
@pytest.mark.parametrize("lr", [0.05, 0.01])
@pytest.mark.parametrize("stabilize", [1, 10, None])
def test_fifty_steps_equal_the_released_ones(lr: float, c: float, stabilize: int | None) -> None:
    assert compare(lr, c, stabilize) <= 1e-9


@pytest.mark.parametrize(("stabilize", "tolerance"), [(1, 5e-8), (10, 5e-4), (None, 1e-3)])
def test_tiny_steps_differ_by_the_released_clamps(stabilize: int | None, tolerance: float) -> None:
    """Below 1e-4 the release's transport is cut short, so its momentum leaves the tangent space.

    Its re-projection mends that to second order in the step; between re-projections, or without
    them, the error is of first order. Ours is tangent by construction.
    """
    assert 1e-9 < compare(3e-5, 1.0, stabilize) <= tolerance


def run(x: Tensor, targets: Tensor, c: float, steps: int, **options: Any) -> Tensor:
    """Minimize the squared distances of rows of x to rows of targets."""
    x = torch.nn.Parameter(x.clone())
    optimizer = RiemannianAdam([x], c=c, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        lorentz.distance(x, targets, c).square().sum().backward()
        optimizer.step()
    return x.detach()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("c", [0.5, 2.3])
def test_steps_do_not_depend_on_the_frame(c: float, amsgrad: bool) -> None:
    """Moving points and targets by an isometry moves every iterate by it."""
    x, targets = normal(0, ROWS, DIM), normal(1, ROWS, DIM)
    for seed, rapidity in ((2, 0.0), (3, 0.8), (4, -1.5)):
        g = isometry(seed, rapidity)
        moved = run(move(g, x, c), move(g, targets, c), c, 20, lr=0.1, amsgrad=amsgrad)
        expected = move(g, run(x, targets, c, 20, lr=0.1, amsgrad=amsgrad), c)
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_converges(dtype: torch.dtype) -> None:
    x, targets = normal(0, ROWS, DIM, dtype=dtype), normal(1, ROWS, DIM, dtype=dtype)
    start = lorentz.distance(x, targets, 0.7)
    end = lorentz.distance(run(x, targets, 0.7, 300, lr=0.05), targets, 0.7)
    assert (end < 0.02 * start).all()


def test_first_step_has_the_length_lr() -> None:
    x, targets = normal(0, ROWS, DIM), normal(1, ROWS, DIM)
    length = lorentz.distance(run(x, targets, 1.7, 1, lr=0.03), x, 1.7)
    torch.testing.assert_close(length, torch.full_like(length, 0.03), rtol=1e-6, atol=0)


def test_rows_without_gradient_stay() -> None:
    x = torch.nn.Parameter(normal(0, ROWS, DIM))
    start = x.detach().clone()
    optimizer = RiemannianAdam([x], lr=0.1)
    for step in range(3):
        x.grad = torch.zeros_like(x)
        x.grad[1] = normal(step, DIM)
        optimizer.step()
    stayed = (x.detach() == start).all(-1)
    assert stayed.tolist() == [row != 1 for row in range(ROWS)]


def test_weight_decay_is_the_gradient_of_its_penalty() -> None:
    x, targets, c = normal(0, ROWS, DIM), normal(1, ROWS, DIM), 1.3
    decayed = run(x, targets, c, 1, lr=0.1, weight_decay=0.3)
    p = torch.nn.Parameter(x.clone())
    penalty = 0.3 * reference.lift(p, c).square().sum() / 2
    (lorentz.distance(p, targets, c).square().sum() + penalty).backward()
    RiemannianAdam([p], lr=0.1, c=c).step()
    torch.testing.assert_close(decayed, p.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_resumes_from_its_state_dict(amsgrad: bool) -> None:
    x = torch.nn.Parameter(normal(0, ROWS, DIM))
    optimizer = RiemannianAdam([x], lr=0.1, c=1.3, amsgrad=amsgrad)
    for step in range(3):
        x.grad = normal(1 + step, ROWS, DIM)
        optimizer.step()
    y = torch.nn.Parameter(x.detach().clone())
    resumed = RiemannianAdam([y], lr=0.7, c=0.2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, table in ((optimizer, x), (resumed, y)):
        table.grad = normal(9, ROWS, DIM)
        each.step()
    assert torch.equal(x, y)


def test_groups_and_closure() -> None:
    """Each group has its own manifold; a parameter without gradient is left alone."""
    a, b, idle = (torch.nn.Parameter(normal(s, ROWS, DIM)) for s in (0, 0, 0))
    groups = [{"params": [a], "c": 0.5}, {"params": [b, idle], "c": 2.0}]
    optimizer = RiemannianAdam(groups, lr=0.1)
    target = normal(1, ROWS, DIM)

    def closure() -> Tensor:
        loss = lorentz.distance(a, target, 0.5).sum() + lorentz.distance(b, target, 2.0).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    start = normal(0, ROWS, DIM)
    for table, c in ((a, 0.5), (b, 2.0)):
        length = lorentz.distance(table.detach(), start, c)
        torch.testing.assert_close(length, torch.full_like(length, 0.1), rtol=1e-6, atol=0)
    assert torch.equal(idle, start)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -1.0),
        ("lr", float("nan")),
        ("eps", -1e-8),
        ("c", 0.0),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("min_norm", -1e-4),
    ],
)
def test_rejects(option: str, value: Any) -> None:
    table = torch.nn.Parameter(torch.ones(2, 3))
    with pytest.raises(ValueError, match=option):
        RiemannianAdam([table], **{option: value})
    with pytest.raises(ValueError, match=option):
        RiemannianAdam([{"params": [table], option: value}])


def test_rejects_sparse_gradients() -> None:
    table = torch.nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        RiemannianAdam(table.parameters()).step()
