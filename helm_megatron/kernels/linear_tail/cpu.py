"""`linear_tail` in torch operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32, computed_in


def add_time_term_(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> None:
    """y `[.., out]` += time `[.., 1]` * time_weight `[out]` + bias `[out]`, summed in fp32."""
    total = _sum_in_place(y, time, time_weight, bias)
    if total is not y:
        y.copy_(total)


def time_term_backward(
    d_out: Tensor, time: Tensor, time_weight: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of time, time weight and bias, where needed, given that of their sum.

    Matrix-vector products: no tensor of d_out's size is made.
    """
    rows = at_least_fp32(d_out).reshape(-1, d_out.shape[-1])
    d_time = d_weight = d_bias = None
    if needed[0]:
        d_time = torch.mv(rows, time_weight.to(rows.dtype)).view_as(time)
    if needed[1]:
        d_weight = torch.mv(rows.t(), time.reshape(-1)).to(time_weight.dtype)
    if needed[2]:
        d_bias = rows.sum(0).to(time_weight.dtype)
    return d_time, d_weight, d_bias


def gated(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """h `[.., f]` of y `[.., 2 f]`, which is the sum after it, unless y is narrower than that."""
    gate, up = _sum_in_place(y, time, time_weight, bias).chunk(2, dim=-1)
    return F.silu(gate).mul_(up).to(y.dtype)


def gated_backward(
    d_out: Tensor,
    y: Tensor,
    time: Tensor,
    time_weight: Tensor,
    bias: Tensor | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of y, and where needed of time, time weight and bias; y as `gated` left it."""
    total = y
    if computed_in(y.dtype) != y.dtype:
        total = _sum_in_place(y, time, time_weight, bias)
    d_sum = _swiglu_backward(d_out.to(total.dtype), total)
    return d_sum.to(y.dtype), *time_term_backward(d_sum, time, time_weight, needed)


def _sum_in_place(y: Tensor, time: Tensor, time_weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum in at least fp32, outside autograd: in y's place, unless y is narrower."""
    out = at_least_fp32(y)
    out.addcmul_(time.to(out.dtype), time_weight.to(out.dtype))
    return out if bias is None else out.add_(bias)


def _swiglu_backward(d_out: Tensor, total: Tensor) -> Tensor:
    """Gradient of the sum, both halves in one tensor as the matrix product wants it."""
    gate, up = total.chunk(2, dim=-1)
    d_total = torch.empty_like(total)
    d_gate, d_up = d_total.chunk(2, dim=-1)
    product = d_out * up
    torch.ops.aten.silu_backward.grad_input(product, gate, grad_input=d_gate)
    torch.ops.aten.silu.out(gate, out=product)
    torch.mul(d_out, product, out=d_up)
    return d_total
