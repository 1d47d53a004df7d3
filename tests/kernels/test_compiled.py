"""Triton's compiler takes every kernel for an NVIDIA target, as far as that goes without a GPU.

The interpreter runs plain numpy: types and shapes that only the compiler refuses pass it.
"""

import os

import pytest
import torch

from helm_megatron.kernels import dispatch
from tests.kernels import test_experts as experts
from tests.kernels.cases import CASES
from tests.kernels.test_fused import results

triton = pytest.importorskip("triton")
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
POINTERS = TYPES | {torch.int32: "*i32", torch.int64: "*i64"}
without_gpu = pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="the kernels themselves run",
)


def compile_only(kernel, grid, *args, **options):
    """Instead of a launch: compile the kernel for the types of these arguments."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    values.pop("num_warps", None)
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    signature = {}
    for name in kernel.arg_names:
        value = values[name]
        if name in constants or value is None:
            constants[name] = value
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    warps = options.get("num_warps", 4)
    assert triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]


@pytest.fixture
def launched(monkeypatch):
    """Kernels are compiled instead of launched; their names."""
    names = []

    def launch(kernel, grid):
        names.append(kernel.__name__)
        return lambda *args, **options: compile_only(kernel, grid, *args, **options)

    monkeypatch.setattr(triton.JITFunction, "__getitem__", launch)
    monkeypatch.setattr(dispatch, "uses_triton", lambda x: True)
    return names


@without_gpu
@pytest.mark.parametrize(
    "name",
    [
        *("time", "time_term", "gated", "residual", "residual_learned_scale"),
        *("residual_norm", "residual_norm_learned_scale", "residual_norm_norm_alone"),
        *("residual_norm_without_norm", "mixture", "mixture_unshared"),
    ],
)
def test_kernels_compile_for_an_nvidia_gpu(name, launched):
    for dtype in TYPES:
        results(CASES[name].fused, CASES[name].inputs(dtype, "cpu"))
    assert len(launched) == 2 * len(TYPES), "forward and backward"


@without_gpu
def test_kernels_of_experts_compile_for_an_nvidia_gpu(launched):
    loads = [3, 2]
    experts.results(experts.inputs(loads, torch.bfloat16, "cpu", True), loads, torch.bfloat16)
    assert len(launched) == 5, "time, and both tails forward and backward"


@without_gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bounds", [None, torch.zeros(3, dtype=torch.int32)])
def test_flash_attention_compiles(bounds, dtype, launched):
    from helm_megatron.kernels.flash.op import flash_attention

    q, k, v = (
        torch.randn(40, 1, heads, 64, dtype=dtype, requires_grad=True) for heads in (2, 1, 1)
    )
    flash_attention(q.detach(), k.detach(), v.detach(), torch.ones(1), 1.0, bounds)
    flash_attention(q, k, v, torch.ones(1), 1.0, bounds).sum().backward()
    assert {"forward_kernel", "query_kernel", "key_kernel", "prepare_kernel"} <= {*launched}


@without_gpu
def test_augmentation_and_centroid_compile(launched):
    from helm_megatron.kernels.augment.op import augment, centroid
    from helm_megatron.kernels.augment.rotary import turned

    q, k, v = (torch.randn(5, 2, 4, 6, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    tau, shift = torch.ones(1, requires_grad=True), torch.zeros(1, 2, 4, 1)
    table = torch.ones(5, 1, 1, 4)
    for moved, rotary in ((None, None), (shift, (table, table))):
        sum(out.sum() for out in augment(q, k, v, tau, 1.0, moved, rotary)).backward()
        m = torch.randn(5, 2, 4, 8, dtype=torch.bfloat16, requires_grad=True)
        centroid(m, 6, 1.0, moved).sum().backward()
    turned(q, (table, table)).sum().backward()
    assert len(launched) == 2 * (3 + 3 + 1 + 1) + 2
