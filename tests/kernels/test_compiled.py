"""Triton's compiler takes every kernel for an NVIDIA target, as far as that goes without a GPU.

The interpreter runs plain numpy: types and shapes that only the compiler refuses pass it.
"""

import os

import pytest
import torch

from helm_megatron.kernels import backend
from tests.kernels.cases import CASES
from tests.kernels.test_fused import results

triton = pytest.importorskip("triton")
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
POINTERS = TYPES | {torch.int32: "*i32", torch.int64: "*i64"}


def compile_only(kernel, grid, *args, **options):
    """Instead of a launch: compile the kernel for the types of these arguments."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    values.pop("num_warps", None)
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    signature = {}
    for name in kernel.arg_names:
        value = values[name]
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    warps = options.get("num_warps", 4)
    assert triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]


@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="the kernels themselves run",
)
@pytest.mark.parametrize(
    "name",
    [
        *("time", "time_term", "gated", "residual", "residual_learned_scale"),
        *("mixture", "mixture_unshared"),
    ],
)
def test_kernels_compile_for_an_nvidia_gpu(name, monkeypatch):
    launched = []

    def launch(kernel, grid):
        launched.append(kernel.__name__)
        return lambda *args, **options: compile_only(kernel, grid, *args, **options)

    monkeypatch.setattr(triton.JITFunction, "__getitem__", launch)
    monkeypatch.setattr(backend, "uses_triton", lambda x: True)
    for dtype in TYPES:
        results(CASES[name].fused, CASES[name].inputs(dtype, "cpu"))
    assert len(launched) == 2 * len(TYPES), "forward and backward"
