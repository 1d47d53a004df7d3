"""Lorentz flash attention: causal attention on space coordinates, forward and backward in Triton.

The exact function of `geometry.attention.lorentz_attention`, in memory linear in the sequence. In
bf16 it loses nothing at large radii: products of times are subtracted from scores, and m_t^2 from
|m_s|^2, in fp32 before anything is rounded. `TRITON_INTERPRET=1`, set before Triton is imported,
runs it on the CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from helm_megatron.kernels.flash.triton_backward import key_kernel, prepare_kernel, query_kernel
from helm_megatron.kernels.flash.triton_forward import forward_kernel, times_kernel

MAX_WIDTH = 256
# The gradients by the weighted sums grow with the square of the radius: too far for fp16.
DTYPES = (torch.float32, torch.bfloat16)
_ROWS = 32
_EPS = 1e-6  # Clamp of |<m,m>|, as in the released code.


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


class _Launch:
    """What all kernels share: sizes, strides, and the grid of a head's blocks of rows."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None, longest: int):
        self.batch, self.heads, self.kv_heads = q.shape[1], q.shape[2], k.shape[2]
        self.sequences = self.batch if bounds is None else len(bounds) - 1
        self.longest = longest
        strides = [stride for x in (q, k, v) for stride in x.stride()[:3]]
        self.sizes = [longest, self.batch, self.heads, *strides]
        self.shape = dict(
            GROUP=self.heads // self.kv_heads,
            D=q.shape[-1],
            E=v.shape[-1],
            WIDTH_D=_width(q.shape[-1]),
            WIDTH_E=_width(v.shape[-1]),
            PACKED=bounds is not None,
        )
        # Of the widest rows; they decide how many fit into registers and shared memory.
        self.width = max(_width(q.shape[-1]), _width(v.shape[-1]))
        self.half = q.element_size() == 2

    def grid(self, rows: int, heads: int) -> tuple[int, int]:
        return triton.cdiv(self.longest, rows), self.sequences * heads

    def forward_tiles(self) -> dict[str, int]:
        keys = 64 if self.half and self.width <= 128 else 32
        return dict(M=128 if self.half else 64, N=keys, num_warps=8, num_stages=2)

    def backward_tiles(self, rows: str) -> dict[str, int]:
        """`rows` names the side that a program keeps."""
        kept = 64 if self.half and self.width <= 128 else 32
        warps = 4 if self.half and self.width <= 64 else 8
        other = "N" if rows == "M" else "M"
        return {rows: kept, other: 32, "num_warps": warps, "num_stages": 2}


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
        launch = _Launch(q, k, v, bounds, longest)
        out = q.new_empty(*q.shape[:3], 1 + v.shape[-1])
        lse, radius = q.new_empty(2, *q.shape[:3], dtype=torch.float32)
        # What the backward pass lacks of a rounded output.
        split = launch.half and any(ctx.needs_input_grad)
        remainder = q.new_empty(*q.shape[:3], v.shape[-1]) if split else None
        tiles = launch.forward_tiles()
        forward_kernel[launch.grid(tiles["M"], launch.heads)](
            q, k, v, *(_times(x, c) for x in (q, k, v)), tau, bounds, out, remainder, lse, radius,
            c, _EPS, *launch.sizes, **launch.shape, **tiles, SPLIT=split,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, tau, out, remainder, lse, radius, bounds)
        ctx.c, ctx.longest = c, longest
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        q, k, v, tau, out, remainder, lse, radius, bounds = ctx.saved_tensors
        launch = _Launch(q, k, v, bounds, ctx.longest)
        times = [_times(x, ctx.c) for x in (q, k, v)]
        rows = (lse, *_prepare(out, remainder, grad.contiguous(), radius, ctx.c))
        launch.shape["SPLIT"] = remainder is not None
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        dtau = torch.empty_like(lse)
        tiles = launch.backward_tiles("M")
        query_kernel[launch.grid(tiles["M"], launch.heads)](
            q, k, v, *times, tau, bounds, *rows, dq, dtau, *launch.sizes, **launch.shape, **tiles
        )
        tiles = launch.backward_tiles("N")
        key_kernel[launch.grid(tiles["N"], launch.kv_heads)](
            q, k, v, *times, tau, bounds, *rows, dk, dv, *launch.sizes, **launch.shape, **tiles
        )
        return dq, dk, dv, dtau.sum().to(tau.dtype).expand_as(tau), None, None, None


def _prepare(
    out: Tensor, remainder: Tensor | None, grad: Tensor, radius: Tensor, c: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradient by the weighted sums: its space part, high and low, and its time."""
    e, split = out.shape[-1] - 1, remainder is not None
    high = out.new_empty(*out.shape[:3], e)
    low, time = torch.empty_like(high) if split else None, torch.empty_like(radius)
    prepare_kernel[(triton.cdiv(radius.numel(), _ROWS),)](
        out, remainder, grad, radius, high, low, time, c, radius.numel(),
        E=e, WIDTH=_width(e), SPLIT=split, ROWS=_ROWS,
    )  # fmt: skip
    return high, low, time


def _times(x: Tensor, c: float) -> Tensor:
    """Times of x `[s, b, heads, d]` in fp32, `[s, b, heads]`."""
    out = x.new_empty(x.shape[:3], dtype=torch.float32)
    times_kernel[(triton.cdiv(out.numel(), _ROWS),)](
        x, out, c, *x.shape[:3], *x.stride()[:3], D=x.shape[3], WIDTH=_width(x.shape[3]), ROWS=_ROWS
    )
    return out


def _width(d: int) -> int:
    """Width of a tile for rows of d numbers; a matrix product takes no less than 16."""
    return max(16, triton.next_power_of_2(d))
