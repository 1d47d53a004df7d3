"""`norm2` in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32


def norm(x: Tensor) -> Tensor:
    """|x| of x `[.., d]` as `[.., 1]`: one reduction, without a tensor of squares."""
    return torch.linalg.vector_norm(at_least_fp32(x), dim=-1, keepdim=True)


def forward(x: Tensor) -> Tensor:
    """|x|^2 of x `[.., d]` as `[.., 1]` in at least fp32."""
    return norm(x).square_()


def backward(d_out: Tensor, x: Tensor) -> Tensor:
    """2 x d_out, in x's dtype."""
    return (at_least_fp32(x) * (2 * d_out)).to(x.dtype)
