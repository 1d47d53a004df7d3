"""All experts of a rank in bf16 on a GPU: grouped matrix products, and Triton between them.

The function of `moe.one_by_one`, with the same formulas. One product over all experts instead of
one each, so that small experts fill the GPU too. The kernels take the factors and time terms along.
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


def fits(x: Tensor, expert: Expert) -> bool:
    """Whether torch's grouped product takes these: bf16, and rows of whole 16 bytes."""
    widths = (*expert.weight1.shape, *expert.weight2.shape)
    return x.dtype == torch.bfloat16 and len(x) > 0 and not any(width % 8 for width in widths)


class Groups(torch.autograd.Function):
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
        kernels, experts = dispatch.kernels("experts.triton"), _stacked_vectors(flat)
        chunks = kernels.Chunks(counts, x.device)
        x = x.contiguous()
        time = dispatch.kernels("norm2.triton").forward(x).add_(c).sqrt_()
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, time, a, inner_time, curvature, *flat = ctx.saved_tensors
        kernels, experts, chunks = (
            dispatch.kernels("experts.triton"),
            _stacked_vectors(flat),
            ctx.chunks,
        )
        grad, scale = grad.contiguous(), (curvature / ctx.c).sqrt()
        by_inner_time, by_vectors2 = kernels.time_term_backward(
            chunks, grad, inner_time, scale, experts.time_weight2
        )
        by_square = by_inner_time / (2 * inner_time)
        by_h = F.grouped_mm(grad, _stacked(flat, "weight2"), offs=chunks.offsets)
        by_a, by_time, by_scale, by_vectors1, h = kernels.gated_backward(
            chunks, by_h, a, time, by_square, scale, experts.time_weight1, experts.bias1
        )
        del by_h
        # A whole term of the gradient of s: the time and the bias that are divided by it.
        by_scale_out = -chunks.by_expert((by_inner_time * inner_time).view(-1)) / scale
        if experts.bias2 is not None:
            by_scale_out -= (by_vectors2[:, 1] * experts.bias2).sum(-1) / scale
        by_c = scale / (2 * curvature)
        by_weight2 = _weight_gradient(grad, h, ctx)
        del h
        by_weight1 = _weight_gradient(by_a, x, ctx)
        by_x = F.grouped_mm(by_a, _stacked(flat, "weight1"), offs=chunks.offsets)
        torch.addcmul(by_x, x, by_time / time, out=by_x)
        gradients = zip(by_weight1, by_vectors1, by_weight2, by_vectors2, strict=True)
        return (
            *(by_x, None, None, None),
            chunks.by_expert(by_scale) * by_c,
            by_scale_out * by_c + chunks.by_expert(by_square.view(-1)),
            *(
                None if parameter is None else part.to(parameter.dtype)
                for expert, (w1, v1, w2, v2) in zip(by_expert(flat), gradients, strict=True)
                for parameter, part in zip(expert, (w1, *v1, w2, *v2), strict=True)
            ),
        )


def _weight_gradient(grad: Tensor, x: Tensor, ctx: Any) -> Tensor:
    """grad^T x of each expert, `[experts, out, in]`."""
    out = F.grouped_mm(grad.t(), x, offs=ctx.chunks.offsets)
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
