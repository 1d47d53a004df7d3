"""All experts of a rank in bf16 on a GPU: one matrix product over all of them, Triton between.

So small experts fill the GPU too. The kernels take the factors and time terms along.
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
        kernels, experts = dispatch.triton("experts"), _stacked_vectors(flat)
        chunks = kernels.Chunks(counts, x.device)
        x = x.contiguous()
        time = dispatch.triton("norm2").forward(x).add_(c).sqrt_()
        curvature = curvature_in.float()
        scale = (curvature / c).sqrt()
        a = F.grouped_mm(x, _stacked(flat, "weight1").mT, offs=chunks.offsets)
        h, square = kernels.gated(chunks, a, time, scale, experts.time_weight1, experts.bias1)
        y = F.grouped_mm(h, _stacked(flat, "weight2").mT, offs=chunks.offsets)
        if tp_group.size() > 1:
            dist.all_reduce(square, group=tp_group)
            dist.all_reduce(y, group=tp_group)
        spread = curvature.repeat_interleave(chunks.counts, output_size=len(x))
        inner_time = square.add_(spread.view(-1, 1)).sqrt_()
        kernels.add_time_term(chunks, y, inner_time, scale, experts.time_weight2, experts.bias2)
        ctx.save_for_backward(x, time, a, inner_time, curvature, *flat)
        ctx.counts, ctx.c, ctx.chunks = counts, c, chunks
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Any, ...]:
        x, time, a, inner_time, curvature, *flat = ctx.saved_tensors
        kernels, chunks, experts = dispatch.triton("experts"), ctx.chunks, _stacked_vectors(flat)
        d_y, scale = d_y.contiguous(), (curvature / ctx.c).sqrt()
        d_inner_time, d_vectors2 = kernels.time_term_backward(
            chunks, d_y, inner_time, scale, experts.time_weight2
        )
        d_square = d_inner_time / (2 * inner_time)
        d_h = F.grouped_mm(d_y, _stacked(flat, "weight2"), offs=chunks.offsets)
        d_a, d_time, d_scale, d_vectors1, h = kernels.gated_backward(
            chunks, d_h, a, time, d_square, scale, experts.time_weight1, experts.bias1
        )
        del d_h
        # A whole term of the gradient of s: the time and the bias that are divided by it.
        d_scale_out = -chunks.by_expert((d_inner_time * inner_time).view(-1)) / scale
        if experts.bias2 is not None:
            d_scale_out -= (d_vectors2[:, 1] * experts.bias2).sum(-1) / scale
        s_by_c = scale / (2 * curvature)
        d_weight2 = _weight_gradient(d_y, h, ctx)
        del h
        d_weight1 = _weight_gradient(d_a, x, ctx)
        d_x = F.grouped_mm(d_a, _stacked(flat, "weight1"), offs=chunks.offsets)
        torch.addcmul(d_x, x, d_time / time, out=d_x)
        gradients = zip(d_weight1, d_vectors1, d_weight2, d_vectors2, strict=True)
        return (
            *(d_x, None, None, None),
            chunks.by_expert(d_scale) * s_by_c,
            d_scale_out * s_by_c + chunks.by_expert(d_square.view(-1)),
            *(
                None if parameter is None else part.to(parameter.dtype)
                for expert, (w1, v1, w2, v2) in zip(by_expert(flat), gradients, strict=True)
                for parameter, part in zip(expert, (w1, *v1, w2, *v2), strict=True)
            ),
        )


def _weight_gradient(d_out: Tensor, x: Tensor, ctx: Any) -> Tensor:
    """d_out^T x of each expert, `[experts, out, in]`."""
    out = F.grouped_mm(d_out.t(), x, offs=ctx.chunks.offsets)
    # On Blackwell torch leaves the product of no rows unwritten (pytorch issue 172439).
    for expert, count in enumerate(ctx.counts):
        if count == 0:
            out[expert].zero_()
    return out


def _stacked(flat: Sequence[Any], part: str) -> Tensor:
    return torch.stack([getattr(expert, part) for expert in by_expert(flat)])


def _stacked_vectors(flat: Sequence[Any]) -> Expert:
    """Time weights and biases of all experts, `[experts, features]`; no matrices."""
    first = by_expert(flat)[0]
    parts: dict[str, Any] = {
        name: _stacked(flat, name)
        for name in ("time_weight1", "bias1", "time_weight2", "bias2")
        if getattr(first, name) is not None
    }
    nothing: dict[str, Any] = dict.fromkeys(Expert._fields)
    return Expert(**nothing | parts)
