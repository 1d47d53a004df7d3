"""Fused functions against their plain twins: outputs, and gradients of every input.

`triton` runs on a GPU, or in Triton's interpreter where TRITON_INTERPRET=1 (test_interpreter.py).
"""

import os

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.linear_tail import op as linear_tail
from helm_megatron.kernels.norm2 import op as norm2
from helm_megatron.kernels.residual import op as residual
from helm_megatron.kernels.residual_norm import op as residual_norm
from tests.kernels.cases import CASES

# Relative root-mean-square error allowed: a multiple of the twin's own, and a floor.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter rounds to bf16 by truncation, which doubles the error.
MULTIPLE = 2.2 if INTERPRETED else 1.1


@pytest.fixture(params=["torch", "triton"])
def device(request, monkeypatch):
    """Run on the given implementation; yields the device of the tensors."""
    if request.param == "torch":
        monkeypatch.setattr(dispatch, "uses_triton", lambda x: False)
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if not INTERPRETED:
        pytest.skip("no GPU; test_interpreter.py runs these in Triton's interpreter")
    monkeypatch.setattr(dispatch, "uses_triton", lambda x: x.element_size() <= 4)
    return "cpu"


def results(function, inputs, seed=1):
    """Outputs, and gradients of the inputs used, for random gradients of the outputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outs = function(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outs]
    grads = [g.to(torch.bfloat16).to(o) for g, o in zip(grads, outs, strict=True)]
    torch.autograd.backward(outs, grads)
    gradients = [x.grad for x in leaves if x.grad is not None]
    return [*(o.detach() for o in outs), *gradients]


def error(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("name", CASES)
def test_as_exact_as_the_twin(name, dtype, device):
    case = CASES[name]
    inputs = case.inputs(dtype, device)
    exact = results(case.twin, [x.double() for x in inputs])
    theirs, ours = results(case.twin, inputs), results(case.fused, inputs)
    for got, plain, true in zip(ours, theirs, exact, strict=True):
        assert got.dtype == plain.dtype and got.shape == plain.shape
        assert error(got, true) <= MULTIPLE * error(plain, true) + FLOOR[dtype]


@pytest.mark.parametrize("name", CASES)
def test_gradients_in_fp64(name):
    inputs = CASES[name].inputs(torch.float64, "cpu")
    torch.testing.assert_close(CASES[name].fused(*inputs), CASES[name].twin(*inputs))
    assert torch.autograd.gradcheck(CASES[name].fused, inputs, fast_mode=True)


def test_residual_is_clamped_as_in_its_twin(device):
    """z, the difference of two close points, is too short: its length carries no gradient."""
    case = CASES["residual"]
    x, _, weight = (leaf.detach() for leaf in case.inputs(torch.float32, device))
    inputs = x, 1.001 * x, -torch.ones_like(weight)
    for got, plain in zip(results(case.fused, inputs), results(case.twin, inputs), strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-3)


def test_programs_with_several_tokens(device, monkeypatch):
    """39 tokens are eight for each of five programs, but for the last."""
    pytest.importorskip("triton")
    monkeypatch.setattr("helm_megatron.kernels.residual_norm.triton.MAX_PROGRAMS", 5)
    test_as_exact_as_the_twin("residual_norm", torch.float32, device)


def test_a_joined_norm_is_no_view(device):
    """Both are outputs of one function: Megatron would put a view into a new tensor."""
    case = CASES["residual_norm"]
    out, normed = case.fused(*case.inputs(torch.float32, device))
    assert not out._is_view() and out.grad_fn is normed.grad_fn


@pytest.mark.parametrize("shape", [(0, 3), (1, 1)])
def test_no_tokens_and_one(shape, device):
    x = torch.randn(*shape, 6, device=device, requires_grad=True)
    w = torch.randn(6, device=device, requires_grad=True)
    one = torch.ones(1, device=device, requires_grad=True)
    t = norm2.time(x, 1.0)
    out = residual.residual(linear_tail.add_time_term(x * 1, t, w, w), x, one, 2.0, 1.0)
    out = sum(residual_norm.residual_norm(out, x, one, 2.0, w, 0.1, 1.0))
    linear_tail.gated(out * 1, t, w, None).sum().backward()
    assert x.grad.shape == x.shape and w.grad.isfinite().all() and one.grad.isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_give_the_same_gradients(reentrant, device):
    """A block that uses its weights twice, kept and recomputed."""
    torch.manual_seed(0)
    d, f = 10, 14
    shapes = [(2 * f, d), (2 * f,), (d, f), (d,), (1,)]
    weights = [torch.randn(s, device=device, requires_grad=True) for s in shapes]
    x = torch.randn(7, 2, d, device=device, requires_grad=True)

    def block(x):
        w1, b1, w2, b2, w = weights
        h = linear_tail.gated(torch.matmul(x, w1.t()), norm2.time(x, 1.3), b1, b1)
        y = linear_tail.add_time_term(torch.matmul(h, w2.t()), norm2.time(h, 1.3), b2, None)
        return residual.residual(x, y, w, 2.0, 1.3)

    def gradients(run):
        for leaf in (x, *weights):
            leaf.grad = None
        run(run(x)).square().mean().backward()
        return [leaf.grad for leaf in (x, *weights)]

    again = gradients(lambda x: checkpoint(block, x, use_reentrant=reentrant))
    for a, b in zip(again, gradients(block), strict=True):
        torch.testing.assert_close(a, b)
