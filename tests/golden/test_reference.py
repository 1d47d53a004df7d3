"""geometry.reference's layers, the oracle of other tests, against the released modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import RTOL, assert_close, cases, load_case
from torch import Tensor

from helm_megatron.geometry import lorentz, reference

Leaves = dict[str, Tensor]
Info = dict[str, Any]


def linear(t: Leaves, info: Info) -> Tensor:
    x, c, kwargs = t["in/x"], t["param/c"], info["kwargs"]
    if "x_manifold" in kwargs:
        # The release sends x through an exponential map whose norm comes out clamped at 1e-4.
        n = 1e-4 / c.sqrt()
        x = reference.lift(x * torch.sinh(n) / n, c)
    out = reference.linear(
        x, t["param/linear.weight"], t["param/linear.bias"], c, t.get("param/manifold_out.k")
    )
    if info["num_heads"] > 1:
        return reference.lift(out[..., 1:].unflatten(-1, (info["num_heads"], -1)), c)
    return out[..., 1:] if "return_space" in kwargs else out


def rmsnorm(t: Leaves, info: Info) -> Tensor:
    x, c, kwargs = t["in/x"], t["param/c"], info["kwargs"]
    if "space_only" in kwargs:
        x = reference.lift(x, c)
    out = reference.rmsnorm(x, t["param/weight"], c, t.get("param/manifold_out.k"))
    return out[..., 1:] if "return_space" in kwargs else out


def residual_scale(t: Leaves, info: Info) -> Tensor | float | None:
    return t["param/scale"].exp() if "param/scale" in t else info["fixed_scale"]


def residual(t: Leaves, info: Info) -> Tensor:
    weight = t["param/w_y"] if "param/w_y" in t else t["in/weight"]
    scale, c_out = residual_scale(t, info), t.get("param/manifold_out.k")
    return reference.residual(t["in/x"], t["in/y"], weight, scale, t["param/c"], c_out)


def pair(t: Leaves, name: str) -> tuple[Tensor, Tensor]:
    return t[f"param/{name}.weight"], t[f"param/{name}.bias"]


def feedforward(t: Leaves, info: Info) -> Tensor:
    w1, w3, w2 = (pair(t, f"{name}.linear") for name in ("w1", "w3", "w2"))
    c = t["param/c"]
    c_expert = t.get("param/expert_manifold.k", c)
    x = reference.rescale(t["in/x"], c, c_expert)
    return reference.rescale(reference.feedforward(x, w1, w3, w2, c_expert), c_expert, c)


def rotate(s: Tensor, t: Leaves) -> Tensor:
    if "in/freqs_cos" not in t:
        return s
    cos, sin = t["in/freqs_cos"], t["in/freqs_sin"]
    even, odd = s[..., 0::2], s[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def attention(t: Leaves, info: Info) -> Tensor:
    x, c, mask = t["in/x"], t["param/manifold.k"], t.get("in/mask")

    def heads(name: str) -> Tensor:
        s = torch.nn.functional.linear(x, *pair(t, name))
        return s.unflatten(-1, (info["n_heads"], -1)).transpose(1, 2)

    q, k = (reference.lift(rotate(heads(name), t), c) for name in ("Wq", "Wk"))
    if mask is not None and mask.dim() == 3:
        mask = mask.unsqueeze(1)
    v = reference.lift(heads("Wv"), c)
    out = reference.attention(q, k, v, c, t["param/scale"], t["param/bias"], mask)
    return reference.linear(out.transpose(1, 2).flatten(-2), *pair(t, "final_linear"), c)


MODULES: dict[str, Callable[[Leaves, Info], Tensor]] = {
    "mod_lorentz_linear": linear,
    "mod_lorentz_rmsnorm": rmsnorm,
    "mod_lresnet": residual,
    "mod_feedforward": feedforward,
    "mod_expert": feedforward,
    "mod_mha_full": attention,
}


def all_cases() -> list[Any]:
    return [
        pytest.param(module, *p.values, id=f"{module}-{p.id}", marks=p.marks)
        for module in MODULES
        for p in cases(module)
        if p.id != "output_attentions"  # Its cotangent has a share for the attention weights.
    ]


def leaves_of(tensors: Leaves, dtype: torch.dtype) -> Leaves:
    leaves = {}
    for name, tensor in tensors.items():
        if name.startswith(("in/", "param/")):
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            leaves[name] = tensor.requires_grad_(f"grad/{name}" in tensors)
    return leaves


@pytest.mark.parametrize(("module", "case"), all_cases())
def test_module(module: str, case: str) -> None:
    tensors, info = load_case(module, case)
    leaves = leaves_of(tensors, torch.float64)
    out = MODULES[module](leaves, info)
    (name,) = (key.removeprefix("out/") for key in tensors if key.startswith("out/"))
    assert_close(out, tensors[f"out/{name}"], what=case)
    (out * tensors[f"cotangent/{name}"]).sum().backward()
    for key, leaf in leaves.items():
        if leaf.requires_grad:
            assert leaf.grad is not None, f"{key} has no gradient"
            assert_close(leaf.grad, tensors[f"grad/{key}"], atol=1e-12, what=f"{case} grad {key}")


@pytest.mark.parametrize("case", cases("mod_lresnet"))
def test_space_chart_residual(case: str, dtype: torch.dtype) -> None:
    """lorentz.residual of the space coordinates; test_manifold.py has the gradients' rule."""
    tensors, info = load_case("mod_lresnet", case)
    rtol = RTOL[dtype]
    if info["c_out"] is not None:
        pytest.skip("lorentz.residual stays on its manifold")
    leaves = leaves_of(tensors, dtype)
    x, y = (leaves[f"in/{n}"].detach()[..., 1:].requires_grad_() for n in "xy")
    weight = leaves["param/w_y"] if "param/w_y" in leaves else leaves["in/weight"]
    scale, c = residual_scale(leaves, info), leaves["param/c"]
    out = reference.lift(lorentz.residual(x, y, weight, 1.0 if scale is None else scale, c), c)
    assert_close(out, tensors["out/z"], rtol, what=case)
    (out * tensors["cotangent/z"].to(dtype)).sum().backward()
    terms = [tensors["grad/param/c"]]
    for name, tensor in (("in/x", x), ("in/y", y)):
        golden, point = tensors[f"grad/{name}"], tensors[name]
        per_time = golden[..., :1] / point[..., :1]
        terms.append(per_time.sum() / 2)
        golden = golden[..., 1:] + per_time * point[..., 1:]
        assert_close(tensor.grad, golden, rtol, what=f"{case} grad {name}")
    for name in ("param/w_y", "in/weight", "param/scale"):
        if name in leaves and leaves[name].requires_grad:
            assert_close(leaves[name].grad, tensors[f"grad/{name}"], rtol, what=name)
    atol = rtol * max(term.abs().item() for term in terms)
    assert_close(c.grad, sum(terms), rtol, atol, what=f"{case} grad c")
