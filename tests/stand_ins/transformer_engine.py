"""Stand-in: Transformer Engine's own Python over torch, on a CPU that says it is a GPU.

Its linears, norms, optimizer, extra states and checkpoint hooks run as they are; its compiled
extension is `te_extension`, its attention kernel torch's. It says nothing of kernels; it says
whether calls, shapes, names, groups and states are right.
"""

import functools
import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.stand_ins import cuda, te_extension

# tools/install.sh puts its Python there.
FOLDER = Path(os.environ.get("TE_STAND_IN", Path(sys.prefix, "te-stand-in")))


def pretend() -> None:
    """Be that machine, from before megatron is imported."""
    sys.path.insert(0, str(FOLDER))
    te_extension.install()
    _import()
    cuda.pretend()
    from transformer_engine.pytorch import DotProductAttention
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    DotProductAttention.forward = attention
    prepare = TransformerEngineBaseModule.prepare_forward
    TransformerEngineBaseModule.prepare_forward = with_cuda_tensors(prepare)


def _import() -> None:
    """Import it, without a look for its libraries."""
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # nor for CUDA's
    package = types.ModuleType("transformer_engine")
    package.__path__ = [str(FOLDER / "transformer_engine")]
    sys.modules["transformer_engine"] = package
    common = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None
    del sys.modules["transformer_engine"]
    import torch._dynamo  # noqa: F401 # which looks for onnx

    exporters = {name: mock.MagicMock() for name in ("onnx", "onnxscript")}
    sys.modules.update(exporters)  # they are never called
    importlib.import_module("transformer_engine.pytorch")
    sys.modules["transformer_engine"].common = common
    for name in exporters:
        del sys.modules[name]


def with_cuda_tensors(function: Any) -> Any:
    """A function to which all tensors are CUDA's: it refuses others."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        torch.Tensor.is_cuda = True
        try:
            return function(*args, **kwargs)
        finally:
            del torch.Tensor.is_cuda

    return wrapper


def attention(
    self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """Causal attention of q, k, v `[s, b, heads, d]`, or of one document without b."""
    assert kwargs.get("attn_mask_type") in ("causal", "padding_causal"), kwargs
    packed = q.dim() == 3
    if packed:
        q, k, v = (x.unsqueeze(1) for x in (q, k, v))
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    out = out.permute(2, 0, 1, 3).flatten(2)
    return out.squeeze(1) if packed else out
