"""Tensors that are asked for on CUDA are made on the CPU.

Upstream: Megatron 0.19 asks for "cuda", or for `torch.cuda.current_device()`, wherever it makes a
tensor; torch without CUDA refuses. Tensors' names of type are compared with CUDA's.
Here: `device` is read as the CPU in torch's functions that make, move or load tensors. They are
replaced, not overridden by a TorchFunctionMode: that costs every operation about 2 us and does not
reach other threads (checkpoint writers, data loaders).
Goes: when Megatron takes its device from one place.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from helm_megatron.megatron_patches.replace import constant, set_all

# Functions that make a tensor where `device` says.
_FACTORIES = """
    arange as_tensor asarray empty empty_like empty_strided eye full full_like linspace logspace
    normal ones ones_like rand rand_like randint randint_like randn randn_like randperm range
    scalar_tensor tensor tril_indices triu_indices zeros zeros_like
""".split()
_NEW_METHODS = "new_empty new_empty_strided new_full new_ones new_tensor new_zeros".split()
_METHODS = "to type cuda pin_memory record_stream".split()
UPSTREAM = dict.fromkeys(
    [f"torch.{name}" for name in [*_FACTORIES, "load"]]
    + [f"torch.Tensor.{name}" for name in [*_NEW_METHODS, *_METHODS]]
    + ["torch.nn.Module.cuda"]
)


def _names_cuda(device: Any) -> bool:
    """Whether an argument means a CUDA device: "cuda", "cuda:0", torch.device("cuda") or 0."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


def _on_cpu(function: Callable[..., Any], keyword: str = "device") -> Callable[..., Any]:
    """`function` that reads CUDA in its `keyword` argument as the CPU and does not pin memory."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            if _names_cuda(kwargs.get(keyword)):
                kwargs[keyword] = "cpu"
            kwargs.pop("pin_memory", None)
        return function(*args, **kwargs)

    return wrapper


def apply() -> None:
    """Redirect torch's functions and methods."""
    set_all(torch, {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})
    set_all(torch.Tensor, {name: _on_cpu(getattr(torch.Tensor, name)) for name in _NEW_METHODS})
    torch.load = _on_cpu(torch.load, "map_location")
    tensor_to, tensor_type = torch.Tensor.to, torch.Tensor.type

    @functools.wraps(tensor_to)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _names_cuda(args[0]):
            args = ("cpu", *args[1:])
        elif kwargs and _names_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return tensor_to(self, *args, **kwargs)

    @functools.wraps(tensor_type)
    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Megatron's optimizers sort parameters by name of type: "torch.cuda.FloatTensor" etc.
        out = tensor_type(self, *args, **kwargs)
        return out.replace("torch.", "torch.cuda.", 1) if isinstance(out, str) else out

    def itself(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    set_all(torch.Tensor, {"to": to, "type": type_name, "cuda": itself, "pin_memory": itself})
    set_all(torch.Tensor, {"record_stream": constant(None)})
    set_all(torch.nn.Module, {"cuda": itself})
