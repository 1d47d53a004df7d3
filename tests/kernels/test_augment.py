"""Augmented heads and centroids, fused, against their plain twins: outputs and gradients."""

import functools
import os

import pytest
import torch

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.augment import plain
from helm_megatron.kernels.augment.op import augment, centroid
from helm_megatron.kernels.augment.plain import (
    augment_key,
    augment_query,
    augment_value,
)
from helm_megatron.kernels.augment.rotary import tables, turned

C = 0.7
TOLERANCE = {
    torch.float64: dict(rtol=1e-12, atol=1e-12),
    torch.float32: dict(rtol=1e-5, atol=2e-6),
    torch.bfloat16: dict(rtol=2e-2, atol=2e-2),
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["torch", "triton"])
def device(request, monkeypatch):
    """Run on the given implementation; yields the device of the tensors."""
    if request.param == "triton" and not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("run by test_flash.py, test_in_the_interpreter")
    triton = request.param == "triton"
    monkeypatch.setattr(dispatch, "uses_triton", lambda x: triton and x.element_size() <= 4)
    return "cuda" if triton and not INTERPRETED else "cpu"


def randn(*shape, dtype, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)


def leaves(dtype, device="cpu"):
    """q, k, v with grouped heads and another width of values, and tau."""
    shapes = (5, 2, 4, 6), (5, 2, 2, 6), (5, 2, 2, 3)
    made = [randn(*shape, dtype=dtype, device=device, seed=i) for i, shape in enumerate(shapes)]
    made.append(torch.tensor([1.7], dtype=dtype, device=device))
    return [x.requires_grad_() for x in made]


def assert_same(fused, plain, inputs, tolerance):
    """Outputs and gradients by every input."""
    results = []
    for function in (fused, plain):
        outs = function(*inputs)
        cotangents = [randn(*out.shape, dtype=out.dtype, seed=9).to(out.device) for out in outs]
        results.append([*outs, *torch.autograd.grad(outs, inputs, cotangents)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shifted", [False, True])
def test_augment(dtype, device, shifted):
    inputs = leaves(dtype, device)
    shift = inputs[2][:1].detach().double().norm(dim=-1, keepdim=True).to(dtype).float()
    shift = shift if shifted else None

    def plain(q, k, v, tau):
        less = 0.0 if shift is None else shift
        return augment_query(q, tau, C), augment_key(k, C), augment_value(v, C, less)

    assert_same(lambda *x: augment(*x, C, shift), plain, inputs, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shifted", [False, True])
def test_centroid(dtype, device, shifted):
    d = 6
    m = augment_value(randn(5, 2, 4, d, dtype=dtype, device=device), C).requires_grad_()
    shift = torch.rand(1, 2, 4, 1, device=device) if shifted else None
    assert_same(
        lambda m: [centroid(m, d, C, shift)],
        lambda m: [plain.centroid(m, d, C, shift)],
        [m],
        TOLERANCE[dtype],
    )


def angles(width, tokens=5, device="cpu"):
    """As Megatron's RotaryEmbedding has them."""
    per_pair = torch.arange(tokens).float()[:, None] * torch.tensor([1.0, 0.3, 0.01])[: width // 2]
    return per_pair.repeat(1, 2)[:, None, None, :].to(device)


def megatrons(x, table, factor):
    """Its plain rotary embedding; it rounds cosines and products to x's dtype."""
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    return _apply_rotary_pos_emb_bshd(x, table, mscale=factor)


def looser(dtype):
    """In low precision the twin rounds turned heads, too, and their gradients."""
    return {name: 2 * value for name, value in TOLERANCE[dtype].items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [4, 6])
def test_rotary_embedding(dtype, device, width):
    """Of all coordinates of a head or the first of them; the angles are of fp32 or fp64."""
    table, factor = angles(width, device=device).to(torch.promote_types(dtype, torch.float32)), 1.1
    rotary = tables(table, factor)
    q, k, v, tau = leaves(dtype, device)
    assert_same(
        lambda x: [turned(x, rotary)], lambda x: [megatrons(x, table, factor)], [q], looser(dtype)
    )

    def plain(q, k, v, tau):
        q, k = (megatrons(x, table, factor) for x in (q, k))
        return augment_query(q, tau, C), augment_key(k, C), augment_value(v, C)

    fused = functools.partial(augment, c=C, rotary=rotary)
    assert_same(fused, plain, [q, k, v, tau], looser(dtype))


def test_packed_heads(device):
    """Without a batch dimension, and not contiguous."""
    inputs = leaves(torch.float32, device)
    inputs = [x[:, 1].detach().requires_grad_() for x in inputs[:3]] + inputs[3:]
    assert_same(
        lambda *x: augment(*x, C),
        lambda q, k, v, t: (augment_query(q, t, C), augment_key(k, C), augment_value(v, C)),
        inputs,
        TOLERANCE[torch.float32],
    )


def test_centroid_of_a_lightlike_sum():
    """Where |<m,m>| is clamped its gradient is zero."""
    m = torch.tensor([[3.0, 4.0, 5.0]], dtype=torch.float64, requires_grad=True)
    assert_same(
        lambda m: [centroid(m, 2, C, None)],
        lambda m: [plain.centroid(m, 2, C)],
        [m],
        TOLERANCE[torch.float64],
    )


def test_gradients_in_fp64():
    assert torch.autograd.gradcheck(lambda *x: augment(*x, C), leaves(torch.float64))
    rotary = tables(angles(4).double(), 1.1)
    assert torch.autograd.gradcheck(lambda *x: augment(*x, C, None, rotary), leaves(torch.float64))
    m = augment_value(randn(3, 4, dtype=torch.float64), C).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: centroid(m, 4, C, None), [m])


def test_only_the_augmented_heads_are_saved():
    """The kernel keeps them too; inputs and times are free to go."""
    inputs = leaves(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        outs = augment(*inputs, C)
    large = [x.data_ptr() for x in saved if x.numel() > 1]
    assert sorted(large) == sorted(out.data_ptr() for out in outs)
