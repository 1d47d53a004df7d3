"""RiemannianAdam in the space chart against the released optimizer in ambient coordinates."""

import pytest
import torch
from golden import RTOL, assert_close, cases, load_case

from helm_megatron.geometry import reference
from helm_megatron.optim.riemannian_adam import RiemannianAdam

RELEASED_MIN_NORM = 1e-4


def space_chart(ambient_grad: torch.Tensor, x: torch.Tensor, c: float) -> torch.Tensor:
    """The gradient by space coordinates of a function with this gradient by ambient ones."""
    x_t = reference.lift(x, c)[..., :1]
    return ambient_grad[..., 1:] + ambient_grad[..., :1] * x / x_t


@pytest.mark.parametrize("case", cases("mod_riemannian_adam"))
def test_steps(case: str, dtype: torch.dtype) -> None:
    tensors, info = load_case("mod_riemannian_adam", case)
    rtol = RTOL[dtype]
    c = info["c"]
    x = torch.nn.Parameter(tensors["start"][..., 1:].to(dtype))
    optimizer = RiemannianAdam(
        [x],
        lr=info["lr"],
        betas=tuple(info["betas"]),
        eps=info["eps"],
        c=c,
        weight_decay=info.get("weight_decay", 0.0),
        amsgrad=info.get("amsgrad", False),
        min_norm=RELEASED_MIN_NORM,
    )
    for step, grad in enumerate(tensors["grads"]):
        x.grad = space_chart(grad.to(dtype), x.detach(), c)
        optimizer.step()
        state = optimizer.state[x]
        momentum = state["exp_avg"]
        point = reference.lift(x.detach(), c)
        momentum_t = (x.detach() * momentum).sum(-1, keepdim=True) / point[..., :1]
        second = state["exp_avg_sq"].expand_as(point)
        assert_close(point, tensors["points"][step], rtol, what=f"points {step}")
        ambient = torch.cat([momentum_t, momentum], -1)
        assert_close(ambient, tensors["exp_avg"][step], rtol, what=f"exp_avg {step}")
        assert_close(second, tensors["exp_avg_sq"][step], rtol, what=f"exp_avg_sq {step}")
