"""One step on rows: the frame's norm, the retraction, what is not touched, long bf16 training."""

import pytest
import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.kernels.points import op, plain, rule
from helm_megatron.optim.riemannian_adam import RiemannianAdam


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("c", [0.5, 2.0])
def test_frame_has_the_riemannian_norm(c: float) -> None:
    x, grad = normal(0, 9, 5), normal(1, 9, 5)
    rgrad = lorentz.riemannian_grad(x, grad, c)
    in_frame = grad.clone()
    op.to_frame_(x, in_frame, c)
    norm2 = in_frame.square().sum(-1)
    torch.testing.assert_close(norm2, (grad * rgrad).sum(-1), rtol=1e-12, atol=0)
    twice = in_frame.clone()
    op.to_frame_(x, twice, c)
    torch.testing.assert_close(twice, rgrad, rtol=1e-12, atol=1e-12)


def one_step(x: Tensor, grad: Tensor, c: float, **options: object) -> tuple[Tensor, Tensor]:
    p = torch.nn.Parameter(x.clone())
    p.grad = grad.clone()
    optimizer = RiemannianAdam([p], lr=0.1, c=c, **options)
    optimizer.step()
    return p.detach(), optimizer.state[p]["exp_avg"]


def test_retraction_steps_in_space_and_transports() -> None:
    """x' = x + u of the chart; the momentum is moved in parallel along the geodesic to x'."""
    x, grad, c = normal(0, 9, 5), normal(1, 9, 5), 0.7
    y, momentum = one_step(x, grad, c, retraction=True)
    tangent = 0.1 * lorentz.riemannian_grad(x, grad, c)
    norm = (grad * tangent).sum(-1, keepdim=True) * 10
    torch.testing.assert_close(y, x - 0.1 * tangent * 10 / norm.sqrt(), rtol=1e-7, atol=1e-7)
    expected = lorentz.transport(x, y, tangent, c)
    torch.testing.assert_close(momentum, expected, rtol=1e-10, atol=1e-10)


def test_retraction_is_the_geodesic_to_first_order() -> None:
    x, grad = normal(0, 9, 5), normal(1, 9, 5)
    options = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "step": 1, "c": 0.7}

    def gap(lr: float) -> float:
        ends = []
        for retraction in (False, True):
            point, zeros = x.clone(), torch.zeros_like(x)
            gradient = grad.clone()
            op.to_frame_(point, gradient, 0.7)
            tables = [point, gradient, zeros, zeros.clone()]
            everywhere = torch.ones(9, dtype=torch.bool)
            op.step_(tables, everywhere, rule.Rule(lr=lr, retraction=retraction, **options))
            ends.append(point)
        return float((ends[0] - ends[1]).abs().max())

    assert gap(1e-3) / gap(1e-2) == pytest.approx(1e-2, rel=0.05)


def test_second_moment_may_be_the_column_of_a_table() -> None:
    """With Adam's shapes, which Megatron's checkpoints need, or as a column: the same step."""
    options = rule.Rule(0.1, 0.9, 0.99, 1e-8, 3, 0.7)
    ends = []
    for columns in (1, 6):
        second = normal(2, 9, 6).abs()[:, :columns].contiguous()
        tables = [normal(0, 9, 6), normal(3, 9, 6), normal(1, 9, 6), second]
        op.step_(tables, torch.ones(9, dtype=torch.bool), options)
        ends.append((tables[0], tables[2], second[:, :1]))
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def test_rest_changes_no_point_and_no_second_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come to rest, and are touched again, go where they go without rest."""

    def run(rest: float) -> tuple[Tensor, Tensor, int]:
        monkeypatch.setattr(rule, "_REST", rest)
        x = torch.nn.Parameter(normal(0, 8, 6).float())
        optimizer = RiemannianAdam([x], lr=1e-3)
        resting = 0
        for step in range(500):
            x.grad = torch.zeros_like(x)
            if step in (0, 1, 300):
                x.grad = normal(step, 8, 6).float()
            optimizer.step()
            resting += int((optimizer.state[x]["exp_avg"] == 0).all(-1).sum())
        return x.detach(), optimizer.state[x]["exp_avg_sq"].abs(), resting

    x, second, resting = run(rule._REST)
    always, second_always, none = run(0.0)
    assert resting > 500 and none == 0
    torch.testing.assert_close(x, always, rtol=0, atol=1e-6)
    torch.testing.assert_close(second, second_always, rtol=1e-4, atol=0)


@pytest.mark.parametrize("portion", [1, 30, 10**6])
def test_portions_and_idle_rows_change_nothing(
    portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Tensor:
        x = torch.nn.Parameter(normal(0, 40, 6))
        optimizer = RiemannianAdam([x], lr=0.1)
        for step in range(4):
            x.grad = normal(1 + step, 40, 6)
            x.grad[torch.arange(40) % (step + 2) != 0] = 0  # other rows each time
            optimizer.step()
        return x.detach()

    whole = run()
    monkeypatch.setattr(plain, "_CPU_PORTION", portion)
    assert torch.equal(run(), whole)


def test_a_row_that_is_not_a_number_is_not_hidden() -> None:
    x, grad = normal(0, 3, 4), torch.zeros(3, 4, dtype=torch.float64)
    grad[1, 2] = float("nan")
    assert one_step(x, grad, 1.0)[0].isnan().any(-1).tolist() == [False, True, False]


@pytest.mark.slow
def test_ten_thousand_steps_stay_on_the_manifold() -> None:
    """bf16 gradients at bf16 points, fp32 masters: every point stays one and goes where it should.

    The momentum stays tangent because it has no other coordinates; that it keeps its meaning shows
    in the points: they follow those of fp64 to the minimum and hold there.
    """
    start, target, c = 3 * normal(0, 16, 8), 3 * normal(1, 16, 8), 0.7
    master = torch.nn.Parameter(start.float())
    optimizer = RiemannianAdam([master], lr=3e-3, c=c)
    for _ in range(10_000):
        low = master.detach().bfloat16().requires_grad_()
        loss = lorentz.distance(low, target.bfloat16(), c).square().mean()
        loss.backward()
        master.grad = low.grad.float()
        optimizer.step()
    x = master.detach()
    assert x.isfinite().all()
    minkowski = x.double().square().sum(-1, keepdim=True) - lorentz.time(x, c).double().square()
    torch.testing.assert_close(minkowski, torch.full_like(minkowski, -c), rtol=0, atol=1e-4)
    away = lorentz.distance(start, target, c)
    assert (lorentz.distance(x.double(), target, c) < 0.02 * away).all()
