"""All experts of a rank in torch operations, one expert after the other.

Its rows then stay in the CPU's cache from step to step: they are filled with t w + b, and the
product is added to them. Of what is as wide as the experts only `a` is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.experts.parameters import Expert, by_expert


class Experts(torch.autograd.Function):
    """The arguments are those of `run_experts`, the experts flat."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        counts: Sequence[int],
        c: float,
        tp_group: ProcessGroup,
        curvature_in: Tensor,
        curvature_out: Tensor,
        *flat: Tensor | None,
    ) -> Tensor:
        experts, curvatures = by_expert(flat), numbers(curvature_in)
        time = _norm2(x).add_(c).sqrt_()
        a, y = x.new_empty(len(x), len(experts[0].weight1)), torch.empty_like(x)
        inner_time = torch.empty_like(time)
        rows: Any = (x, time, a, inner_time, y)
        runs: Any = zip(*(r.split(counts) for r in rows), strict=True)
        for run, expert, c_e in zip(runs, experts, curvatures, strict=True):
            _run_forward(expert, c, c_e, tp_group, *run)
        if tp_group.size() > 1:
            dist.all_reduce(y, group=tp_group)
        ctx.save_for_backward(x, time, a, inner_time, *flat)
        ctx.counts, ctx.c, ctx.curvatures = counts, c, curvatures
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Any, ...]:
        x, time, a, inner_time, *flat = ctx.saved_tensors
        d_x = torch.empty_like(x)
        rows: Any = (d_y.contiguous(), x, time, a, inner_time, d_x)
        runs: Any = zip(*(r.split(ctx.counts) for r in rows), strict=True)
        d_curvature_in, d_curvature_out = [], []
        gradients: list[Any] = []
        for run, expert, c_e in zip(runs, by_expert(flat), ctx.curvatures, strict=True):
            d_in, d_out, d_expert = _run_backward(expert, ctx.c, c_e, *run)
            d_curvature_in.append(d_in)
            d_curvature_out.append(d_out)
            gradients += d_expert
        d_curvatures = torch.stack(d_curvature_in), torch.stack(d_curvature_out)
        return (d_x, None, None, None, *d_curvatures, *gradients)


def numbers(x: Tensor) -> list[float]:
    """The values of x `[n]`; a matrix product takes its factor from the host."""
    return x.tolist()


def _run_forward(
    expert: Expert,
    c: float,
    c_e: float,
    tp_group: ProcessGroup,
    x: Tensor,
    time: Tensor,
    a: Tensor,
    inner_time: Tensor,
    y: Tensor,
) -> None:
    """Fill the rows of a, inner_time and y of one expert; y is this rank's share."""
    s = (c_e / c) ** 0.5
    _fill(a, time * s, expert.time_weight1, expert.bias1)
    a.addmm_(x, expert.weight1.t(), alpha=s)
    gate, up = a.chunk(2, dim=-1)
    h = F.silu(gate).mul_(up)
    square = _norm2(h)
    if tp_group.size() > 1:
        dist.all_reduce(square, group=tp_group)
    inner_time.copy_(square.add_(c_e).sqrt_())
    if tp_group.rank() == 0:
        bias = None if expert.bias2 is None else at_least_fp32(expert.bias2) / s
        _fill(y, inner_time / s, expert.time_weight2, bias)
    else:
        y.zero_()
    y.addmm_(h, expert.weight2.t(), alpha=1 / s)


def _run_backward(
    expert: Expert,
    c: float,
    c_e: float,
    d_y: Tensor,
    x: Tensor,
    time: Tensor,
    a: Tensor,
    inner_time: Tensor,
    d_x: Tensor,
) -> tuple[Tensor, Tensor, Expert]:
    """Fill the rows of d_x of one expert; returns the gradients of curvatures and parameters."""
    s = (c_e / c) ** 0.5
    gate, up = a.chunk(2, dim=-1)
    opened = F.silu(gate)
    h = opened * up
    # y = (W2 h + T w2 + b2) / s with T = time(h).
    d_h = _product(d_y, expert.weight2, 1 / s)
    d_inner_time = _times(d_y, expert.time_weight2).div_(s)
    d_bias2 = d_y.sum(0, dtype=time.dtype) / s
    d_weight2 = _weight_gradient(expert.weight2, d_y.t(), h, 1 / s)
    d_time_weight2 = _times(d_y.t(), inner_time / s).view(-1)
    # Through 1/s: of the share of W2 h that this rank has, and of the terms that all ranks have.
    d_s_in, d_s_out = _dot(d_h, h) / -s, _dot(d_inner_time, inner_time) / -s
    if expert.bias2 is not None:
        d_s_out = d_s_out - _dot(d_bias2, expert.bias2) / s
    d_square = d_inner_time.div_(inner_time).div_(2)
    d_h.addcmul_(h, 2 * d_square)
    d_a = torch.empty_like(a)
    d_gate, d_up = d_a.chunk(2, dim=-1)
    torch.mul(d_h, opened, out=d_up)
    d_gate.copy_(torch.ops.aten.silu_backward(d_h.mul_(up), gate))
    # a = s (W1 x + t w1) + b1.
    torch.addmm(d_x, d_a, expert.weight1, beta=0, alpha=s, out=d_x)
    d_time = _times(d_a, expert.time_weight1).mul_(s)
    d_s_in = d_s_in + (_dot(d_x, x) + _dot(d_time, time)) / s
    d_x.addcmul_(x, d_time / time)
    s_by_c = s / (2 * c_e)
    return (
        d_s_in * s_by_c,
        d_s_out * s_by_c + d_square.sum(),
        Expert(
            weight1=_weight_gradient(expert.weight1, d_a.t(), x, s),
            time_weight1=_like(_times(d_a.t(), time * s).view(-1), expert.time_weight1),
            bias1=None
            if expert.bias1 is None
            else _like(d_a.sum(0, dtype=time.dtype), expert.bias1),
            weight2=d_weight2,
            time_weight2=_like(d_time_weight2, expert.time_weight2),
            bias2=None if expert.bias2 is None else _like(d_bias2, expert.bias2),
        ),
    )


def _fill(out: Tensor, time: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """out = time `[n, 1]` * weight `[d]` + bias `[d]`."""
    weight = at_least_fp32(weight)
    if bias is None:
        torch.mul(time, weight, out=out)
    else:
        torch.addcmul(at_least_fp32(bias), time, weight, out=out)


def _norm2(x: Tensor) -> Tensor:
    """Squared norms of rows `[n, d]`, as `[n, 1]` in at least fp32; the squares are not stored."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square_()


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor * a @ b, in one pass."""
    out = a.new_empty(a.shape[0], b.shape[1])
    return torch.addmm(out, a, b, beta=0, alpha=factor, out=out)


def _weight_gradient(weight: Any, a: Tensor, b: Tensor, factor: float) -> Tensor | None:
    """factor * a @ b, or on CPUs None if that has been added to Megatron's buffer of its dtype.

    Else autograd would hold the gradients of all experts before it adds the first of them. On a GPU
    the buffer's flag, once set, would hide what `one_product` finds in later micro-batches.
    """
    buffer = getattr(weight, "main_grad", None)
    marked = hasattr(weight, "grad_added_to_main_grad")
    if buffer is None or not marked or buffer.dtype != a.dtype or not dispatch.on_cpu(a):
        return _product(a, b, factor)
    buffer.addmm_(a, b, alpha=factor)
    weight.grad_added_to_main_grad = True
    # Megatron's hook wants to see some gradient, and drops it.
    weight.grad = weight.new_empty(1, 1).expand_as(weight)
    return None


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix @ vector, as `[n, 1]` in at least fp32."""
    return torch.mv(at_least_fp32(matrix), at_least_fp32(vector).view(-1)).unsqueeze(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of all products, in at least fp32; the products are not stored."""
    return torch.dot(at_least_fp32(a).reshape(-1), at_least_fp32(b).reshape(-1))


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    return gradient.to(parameter.dtype)
