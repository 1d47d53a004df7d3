"""Lorentz flash attention against its plain twin, on a GPU or in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, so without a GPU these tests run in a process of
their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnBackend

from helm_megatron.kernels.flash.plain import lorentz_attention
from tests.layers.models import dense, mice, model, perturb
from tests.layers.test_packed import apart

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="run by test_in_the_interpreter"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
C, TAU = 1.3, 7.0
LENGTHS = [7, 1, 41, 16]
# Tokens, batch, heads of queries and of keys, widths of keys and of values.
SHAPES = {
    "grouped": (37, 2, 4, 2, 24, 24),
    "several blocks": (140, 1, 1, 1, 64, 64),
    "latent": (33, 1, 2, 2, 96, 64),
    "wide": (35, 1, 1, 1, 192, 128),
}
# Relative error in norm: of the output, and of the gradients.
TOLERANCE = {torch.float32: (3e-6, 2e-4), torch.bfloat16: (4e-3, 1e-2)}


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the kernels run here")
def test_in_the_interpreter():
    files = __file__, Path(__file__).with_name("test_augment.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout + run.stderr


def inputs(shape, dtype, magnitude=1.0, seed=0):
    """q, k, v, tau to differentiate by, all parts of one projection where heads are as many."""
    s, b, heads, groups, d, e = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [heads * d, groups * d, groups * e]
    mixed = magnitude * torch.randn(s, b, sum(sizes), generator=generator)
    q, k, v = mixed.to(DEVICE, dtype).split(sizes, dim=-1)
    parts = q.unflatten(-1, (heads, d)), k.unflatten(-1, (groups, d)), v.unflatten(-1, (groups, e))
    tau = torch.tensor([TAU], device=DEVICE)
    return [x.detach().requires_grad_() for x in (*parts, tau)]


def errors(attention, qkvt, exact, seed=1):
    """Relative errors of the output and of the gradients against the exact function in fp64."""
    wide = [x.detach().double().requires_grad_() for x in qkvt]
    out, expected = attention(*qkvt), exact(*wide)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(out.shape, generator=generator).to(out)
    gradients = torch.autograd.grad(out, qkvt, cotangent)
    expected_gradients = torch.autograd.grad(expected, wide, cotangent.double())
    return [
        ((a.double() - b).norm() / b.norm()).item()
        for a, b in zip((out, *gradients), (expected, *expected_gradients), strict=True)
    ]


def flash(q, k, v, tau, bounds=None, longest=None):
    from helm_megatron.kernels.flash.op import flash_attention

    return flash_attention(q, k, v, tau, C, bounds, longest)


def exact(q, k, v, tau):
    return lorentz_attention(q, k, v, tau, C)


@runs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_gradients(shape, dtype):
    of_output, *of_gradients = errors(flash, inputs(shape, dtype), exact)
    assert of_output < TOLERANCE[dtype][0]
    # Tau's is one sum of terms of both signs.
    assert max(of_gradients[:3]) < TOLERANCE[dtype][1] and of_gradients[3] < 0.05, of_gradients


@runs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("longest", [max(LENGTHS), None])
def test_packed_documents(dtype, longest):
    def documents_alone(q, k, v, tau):
        parts = zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True)
        return torch.cat([exact(*part, tau) for part in parts])

    bounds = torch.tensor([0, *LENGTHS], device=DEVICE).cumsum(0, dtype=torch.int32)
    qkvt = inputs((sum(LENGTHS), 1, 2, 1, 16, 9), dtype)
    of_output, *of_gradients = errors(lambda *x: flash(*x, bounds, longest), qkvt, documents_alone)
    assert of_output < TOLERANCE[dtype][0]
    assert max(of_gradients[:3]) < TOLERANCE[dtype][1], of_gradients


def euclidean(q, k, v, tau):
    heads = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    out = F.scaled_dot_product_attention(*heads, is_causal=True)
    return out.permute(2, 0, 1, 3) + 0 * tau


def test_any_number_of_documents_and_heads_is_launched():
    """CUDA counts to 2^31 on the first axis of a grid, and to 65,535 on the others."""
    from helm_megatron.kernels.flash.triton import _Launch

    q = torch.zeros(8, 1, 64, 16)
    launch = _Launch(q, q, q, torch.zeros(10_001, dtype=torch.int32), longest=200)
    for tile in (launch.forward_tiles()["M"], launch.backward_tiles("N")["N"]):
        first, *others = launch.grid(tile, heads=64)
        assert 65_535 < first < 2**31 and max(others, default=1) <= 65_535


@runs_kernels
@pytest.mark.parametrize("magnitude", [0.3, 1.0, 3.0])
def test_error_in_bf16_is_at_most_twice_the_euclidean(magnitude):
    """Of the output and of the gradients by queries, keys and values."""
    qkvt = inputs((96, 1, 2, 2, 64, 64), torch.bfloat16, magnitude)
    ours, theirs = errors(flash, qkvt, exact)[:4], errors(euclidean, qkvt, euclidean)[:4]
    for our, their in zip(ours, theirs, strict=True):
        assert 0 < our <= 2 * their, (ours, theirs)


@runs_kernels
def test_what_the_kernel_does_not_take():
    with pytest.raises(ValueError, match="width 300"):
        flash(*inputs((3, 1, 1, 1, 300, 8), torch.float32))
    with pytest.raises(ValueError, match="float64"):
        flash(*(x.double() for x in inputs((3, 1, 1, 1, 8, 8), torch.float32)))


@runs_kernels
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("config", [dense, mice])
@pytest.mark.parametrize("path", ["sequence", "thd"])
def test_model_with_flash_equals_augmented_model(config, path):
    """The flag chooses the kernel: losses and gradients of all parameters are the same."""
    packed = apart("thd")["packed"] if path == "thd" else None
    tokens = torch.arange(32 if packed is None else int(packed.cu_seqlens_q[-1])).unsqueeze(0) % 96
    results = []
    lm = perturb(model(config())).to(DEVICE)
    for backend in (AttnBackend.flash, AttnBackend.fused):
        # Not before: Megatron fixes the backend of a process by environment variables.
        lm.config.attention_backend = backend
        lm.zero_grad()
        logits = lm(tokens.to(DEVICE), tokens.to(DEVICE), None, packed_seq_params=packed)
        logits.float().square().mean().backward()
        found = lm.named_parameters()
        gradients = {n: p.grad.clone() for n, p in found if p.grad is not None}
        results.append({"logits": logits.detach(), **gradients})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-3, atol=1e-5)
