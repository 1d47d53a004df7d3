"""Causal attention of the last tokens of a sequence to all of it, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def lower_right_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of q `[b, h, l, d]` to k, v `[b, h, s, d]`; the last query sees all keys.

    torch's own writes out an `[l, s]` mask here, which the backward pass keeps. This attends to
    the keys before the queries and, causally, to those beside them, and joins the two.
    """
    return _LowerRight.apply(q, k, v, scale)


class _LowerRight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        parts = [
            _forward(q, keys, values, 0.0, causal, scale=scale)
            for keys, values, causal in _parts(q, k, v)
        ]
        lse = torch.logsumexp(torch.stack([part[1] for part in parts]), dim=0)
        out = sum(out * (part - lse).exp().unsqueeze(-1).to(out.dtype) for out, part in parts)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        gradients = [
            # With the sums over both parts each gives its share of the whole gradient.
            _backward(d_out, q, keys, values, out, lse, 0.0, causal, scale=ctx.scale)
            for keys, values, causal in _parts(q, k, v)
        ]
        before, beside = gradients
        d_k, d_v = (torch.cat([before[i], beside[i]], dim=-2) for i in (1, 2))
        return before[0] + beside[0], d_k, d_v, None


def _parts(q: Tensor, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor, bool]]:
    """Keys and values before the queries' tokens, and those beside them; whether causal."""
    sizes = [k.shape[-2] - q.shape[-2], q.shape[-2]]
    before, beside = zip(k.split(sizes, dim=-2), v.split(sizes, dim=-2), strict=True)
    return [(*before, False), (*beside, True)]
