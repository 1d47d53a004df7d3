"""Experts by grouped products and Triton against one expert after the other.

On a GPU, or in Triton's interpreter where TRITON_INTERPRET=1 (test_interpreter.py).
"""

from types import SimpleNamespace

import pytest
import torch

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.experts import plain
from helm_megatron.kernels.experts.op import run_experts
from helm_megatron.kernels.experts.parameters import Expert
from tests.kernels.test_fused import FLOOR, INTERPRETED, MULTIPLE, error

HIDDEN, INNER, C = 40, 264, 1.7
ONE_RANK = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
# More rows than a chunk of the kernels has, no rows, one row.
LOADS = {"unequal": [70, 0, 9, 1], "idle ends": [0, 21, 5, 0]}


@pytest.fixture
def triton_device(monkeypatch):
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("no GPU; test_interpreter.py runs these in Triton's interpreter")
    monkeypatch.setattr(dispatch, "uses_triton", lambda x: x.element_size() <= 4)
    return "cuda" if torch.cuda.is_available() else "cpu"


def inputs(loads, dtype, device, bias):
    """Rows, both curvatures, and the parameters of every expert."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape, size=0.3):
        x = size * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).to(device).requires_grad_()

    def expert():
        return [
            *(leaf(2 * INNER, HIDDEN), leaf(2 * INNER), leaf(2 * INNER) if bias else None),
            *(leaf(HIDDEN, INNER), leaf(HIDDEN), leaf(HIDDEN) if bias else None),
        ]

    curvature = torch.linspace(0.5, 2.5, len(loads), dtype=torch.float64).to(device)
    curvatures = [curvature.to(torch.float32).requires_grad_() for _ in range(2)]
    return [leaf(sum(loads), HIDDEN, size=1), *curvatures, *(p for _ in loads for p in expert())]


def results(leaves, loads, dtype):
    """Output and gradients, in the precision dtype."""
    leaves = [None if x is None else x.detach().to(dtype).requires_grad_() for x in leaves]
    if dtype != torch.float64:
        leaves[1:3] = [x.detach().float().requires_grad_() for x in leaves[1:3]]
    x, c_in, c_out, *flat = leaves
    experts = [Expert(*flat[6 * i : 6 * i + 6]) for i in range(len(loads))]
    y = run_experts(x, loads, C, c_in, c_out, experts, ONE_RANK)
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator).bfloat16().to(y))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_experts_are_as_exact_as_one_after_the_other(
    dtype, loads, bias, triton_device, monkeypatch
):
    if dtype == torch.float32 and triton_device == "cuda":
        pytest.skip("on a GPU torch's grouped product takes bf16 only")
    leaves = inputs(loads, dtype, triton_device, bias)
    exact = results(leaves, loads, torch.float64)
    monkeypatch.setattr(dispatch, "fits_grouped_product", lambda x, widths: False)
    theirs = results(leaves, loads, dtype)
    # In the interpreter also fp32, which shows errors that bf16 would hide.
    monkeypatch.setattr(dispatch, "fits_grouped_product", lambda x, widths: True)
    ours = results(leaves, loads, dtype)
    for place, (got, rounded, true) in enumerate(zip(ours, theirs, exact, strict=True)):
        # Output, then gradients: those of curvatures are sums of all rounding, which partly cancel.
        slack = 3 if place in (2, 3) else 1
        assert got.dtype == rounded.dtype and got.shape == rounded.shape
        if true.norm() == 0:
            assert got.norm() == 0
        else:
            assert error(got, true) <= slack * (MULTIPLE * error(rounded, true) + FLOOR[dtype])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_one_after_the_other_equals_the_plain_twin(loads, bias):
    """Output and gradients in fp64; a curvature's is that of both its roles together."""
    leaves = inputs(loads, torch.float64, "cpu", bias)
    y, d_x, d_c_in, d_c_out, *d_parameters = results(leaves, loads, torch.float64)
    x, c, _, *flat = [None if x is None else x.detach().double().requires_grad_() for x in leaves]
    experts = [Expert(*flat[6 * i : 6 * i + 6]) for i in range(len(loads))]
    expected = plain.run_experts(x, loads, C, c, experts)
    generator = torch.Generator().manual_seed(1)
    expected.backward(torch.randn(y.shape, generator=generator).bfloat16().to(y))
    theirs = [expected.detach(), x.grad, c.grad, *(p.grad for p in flat if p is not None)]
    for got, true in zip([y, d_x, d_c_in + d_c_out, *d_parameters], theirs, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-12)
