"""What Transformer Engine's compiled extension does for a bf16 or fp32 model, in torch.

Every name exists, so its Python can be imported; a function that is not here says so when called.
"""

import enum
import sys
import types
from typing import Any

import torch
from torch import Tensor

NAME = "transformer_engine_torch"


class DType(enum.IntEnum):
    """Numbers of types, as the extension has them."""

    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


TORCH = {
    DType.kFloat32: torch.float32,
    DType.kFloat16: torch.float16,
    DType.kBFloat16: torch.bfloat16,
}


class Missing:
    """A name of the extension that the stand-in only has for the sake of imports."""

    def __init__(self, name: str) -> None:
        self.__dict__["name"] = name

    def __getattr__(self, name: str) -> "Missing":
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        self.__dict__[name] = made = Missing(f"{self.name}.{name}")
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"the stand-in of Transformer Engine has no {self.name}")

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Missing) and other.name == self.name

    def __or__(self, other: Any) -> "Missing":
        return self

    __ror__ = __or__

    def __int__(self) -> int:
        return 0

    __index__ = __int__


class Extension(types.ModuleType):
    """The module, in which every name exists."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Missing(name)
        setattr(self, name, made)
        return made


def generic_gemm(
    a: Tensor, transpose_a: bool, b: Tensor, transpose_b: bool, out: Tensor | None, quantizer: Any,
    out_dtype: Any, bias: Tensor | None, bias_dtype: Any, gelu: bool, gelu_in: Any, grad: bool,
    workspace: Any, workspace_size: int, accumulate: bool, *_: Any, comm_overlap: Any = None,
    alpha: float = 1.0, beta: float | None = None, **__: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """out = op(b) op(a) of matrices by rows, as a BLAS by columns would be asked for it."""
    assert not gelu and comm_overlap is None and alpha == 1.0
    left, right = (x.reshape(-1, x.shape[-1]).float() for x in (b, a))
    product = (left.T if transpose_b else left) @ (right.T if transpose_a else right)
    if not transpose_b:
        product = product.view(*b.shape[:-1], product.shape[-1])
    bias_grad = None
    if bias is not None and bias.numel():
        if grad:
            bias_grad = left.sum(0)
        else:
            product = product + bias.float()
    if out is None:
        out = product.to(TORCH[out_dtype] if out_dtype is not None else a.dtype)
    elif accumulate:
        out.add_(product.view_as(out))
    else:
        out.copy_(product.view_as(out))
    return out, bias_grad, None, None


def rmsnorm_fwd(
    x: Tensor, weight: Tensor, eps: float, out: Any, quantizer: Any, dtype: Any, margin: int,
    zero_centered: bool,
) -> tuple[Tensor, None, Tensor]:  # fmt: skip
    """The norm of rows `[n, d]`, and the factor of each row."""
    assert not zero_centered
    factor = (x.float().square().mean(-1) + eps).rsqrt()
    return (x.float() * factor[:, None] * weight.float()).to(TORCH[dtype]), None, factor


def rmsnorm_bwd(
    d_out: Tensor, x: Tensor, factor: Tensor, weight: Tensor, margin: int, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    normed = x.float() * factor[:, None]
    along = d_out.float() * weight.float()
    d_x = (along - normed * (along * normed).mean(-1, keepdim=True)) * factor[:, None]
    return d_x.to(x.dtype), (d_out.float() * normed).sum(0).to(weight.dtype)


def multi_tensor_l2norm(
    chunk: int, overflow: Tensor, lists: Any, per_tensor: bool = False, *_: Any
) -> tuple[Tensor, Tensor | None]:
    """Norm of all tensors together, and of each."""
    norms = torch.stack([x.float().norm() for x in lists[0]])
    return norms.norm().view(1), norms if per_tensor else None


def multi_tensor_scale(chunk: int, overflow: Tensor, lists: Any, scale: Any) -> None:
    """Tensors times a number, into others."""
    for x, out in zip(*lists, strict=True):
        out.copy_(x * scale)


def multi_tensor_adam(
    chunk: int, overflow: Tensor, lists: Any, lr: float, beta1: float, beta2: float, eps: float,
    step: int, adam_w_mode: int, bias_correction: int, weight_decay: float,
) -> None:  # fmt: skip
    """A step of Adam of gradients, parameters, first and second moments."""
    assert bias_correction and adam_w_mode
    for grad, x, first, second in zip(*lists, strict=True):
        first.lerp_(grad.float(), 1 - beta1)
        second.mul_(beta2).addcmul_(grad.float(), grad.float(), value=1 - beta2)
        denominator = (second / (1 - beta2**step)).sqrt_().add_(eps)
        update = first / (1 - beta1**step) / denominator + weight_decay * x.float()
        x.sub_(lr * update)


FUNCTIONS = [
    generic_gemm,
    rmsnorm_fwd,
    rmsnorm_bwd,
    multi_tensor_l2norm,
    multi_tensor_scale,
    multi_tensor_adam,
]


def install() -> None:
    """Be the extension."""
    module = Extension(NAME)
    module.DType = DType
    module.NVTE_Fused_Attn_Backend = enum.IntEnum(
        "NVTE_Fused_Attn_Backend",
        {"NVTE_No_Backend": -1, "NVTE_F16_arbitrary_seqlen": 1, "NVTE_FP8": 2},
    )
    answers = {
        "get_cudnn_version": 91500,
        "get_cublasLt_version": 130000,
        "ubuf_built_with_mpi": False,
        "device_supports_multicast": False,
        "get_num_cublas_streams": 4,
    }
    for name, value in answers.items():
        setattr(module, name, lambda *args, value=value: value)
    for base in ("Base", "P2PBase", "", "P2P", "Helper", "Core"):
        setattr(module, f"CommOverlap{base}", type(f"CommOverlap{base}", (), {}))
    for function in FUNCTIONS:
        setattr(module, function.__name__, function)
    module.multi_tensor_unscale_l2norm = multi_tensor_l2norm
    module.multi_tensor_scale_tensor = multi_tensor_scale
    sys.modules[NAME] = module
