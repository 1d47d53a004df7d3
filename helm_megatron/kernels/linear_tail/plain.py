"""What follows the matrix product of a Lorentz linear, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32


def add_time_term(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """y `[.., out]` + time `[.., 1]` * time_weight `[out]` + bias `[out]`, summed in fp32."""
    return _sum(y, time, time_weight, bias).to(y.dtype)


def gated(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """SwiGLU `[.., out / 2]` of `add_time_term`: silu of its first half times its second."""
    gate, up = _sum(y, time, time_weight, bias).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(y.dtype)


def _sum(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.addcmul(at_least_fp32(y), time, at_least_fp32(time_weight))
    return out if bias is None else out + at_least_fp32(bias)
