"""Lorentz flash attention: causal attention on space coordinates, forward and backward in Triton.

The exact function of `flash.plain`, in memory linear in the sequence. In bf16 it loses nothing at
large radii: products of times are subtracted from scores, and m_t^2 from |m_s|^2, in fp32 before
anything is rounded. `TRITON_INTERPRET=1`, set before Triton is imported, runs it on the CPU, for
tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.kernels import dispatch

MAX_WIDTH = 256
# The gradients of the weighted sums grow with the square of the radius: too far for fp16.
DTYPES = (torch.float32, torch.bfloat16)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: Tensor,
    c: float,
    bounds: Tensor | None = None,
    longest: int | None = None,
) -> Tensor:
    """Causal Lorentz attention of q, k `[s, b, heads, d]`, v `[s, b, heads, e]` on L_c.

    Scores are 2 <q,k> / tau, with tau one number in a tensor. k and v may have fewer heads, each
    for as many consecutive ones of q. Packed documents have b = 1, `bounds` `[documents + 1]`, the
    int32 positions where they start and the end of the last, and `longest`, the tokens of the
    longest (default: all of them). Returns the ambient heads, times first, `[s, b, heads, 1 + e]`.

    Raises:
        ValueError: if a head is wider than 256, or the dtype is neither fp32 nor bf16.
    """
    if max(q.shape[-1], v.shape[-1]) > MAX_WIDTH or q.dtype not in DTYPES:
        raise ValueError(
            f"heads of width {q.shape[-1]} and {v.shape[-1]} in {q.dtype}: Lorentz flash attention "
            f"takes widths up to {MAX_WIDTH} in fp32 or bf16"
        )
    return _FlashAttention.apply(q, k, v, tau, c, bounds, longest or len(q))


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tau: Tensor,
        c: float,
        bounds: Tensor | None,
        longest: int,
    ) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        inputs, needed = (q, k, v, tau, bounds), any(ctx.needs_input_grad)
        out, *kept = dispatch.triton("flash").forward(*inputs, c, longest, needed)
        ctx.save_for_backward(*inputs, out, *kept)
        ctx.c, ctx.longest = c, longest
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple:  # type: ignore[override]
        q, k, v, tau, bounds, *kept = ctx.saved_tensors
        function = dispatch.triton("flash").backward
        gradients = function(d_out, q, k, v, tau, bounds, ctx.c, ctx.longest, *kept)
        return *gradients, None, None, None
