"""Lorentz flash attention in Triton: what is launched, in which tiles, with what it keeps."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from helm_megatron.kernels.flash.triton_backward import key_kernel, prepare_kernel, query_kernel
from helm_megatron.kernels.flash.triton_forward import forward_kernel, times_kernel

_ROWS = 32
_EPS = 1e-6  # Clamp of |<m,m>|, as in the released code.


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: Tensor,
    bounds: Tensor | None,
    c: float,
    longest: int,
    needed: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The output, what rounding took from it where a gradient is needed, `lse` and `radius`.

    Of q, k and v the last dimension is contiguous.
    """
    launch = _Launch(q, k, v, bounds, longest)
    out = q.new_empty(*q.shape[:3], 1 + v.shape[-1])
    lse, radius = q.new_empty(2, *q.shape[:3], dtype=torch.float32)
    # What the backward pass lacks of a rounded output.
    split = launch.half and needed
    remainder = q.new_empty(*q.shape[:3], v.shape[-1]) if split else None
    tiles = launch.forward_tiles()
    forward_kernel[launch.grid(tiles["M"], launch.heads)](
        q, k, v, *(_times(x, c) for x in (q, k, v)), tau, bounds, out, remainder, lse, radius,
        c, _EPS, *launch.sizes, **launch.shape, **tiles, SPLIT=split,
    )  # fmt: skip
    return out, remainder, lse, radius


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: Tensor,
    bounds: Tensor | None,
    c: float,
    longest: int,
    out: Tensor,
    remainder: Tensor | None,
    lse: Tensor,
    radius: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and tau."""
    launch = _Launch(q, k, v, bounds, longest)
    times = [_times(x, c) for x in (q, k, v)]
    rows = (lse, *_prepare(d_out.contiguous(), out, remainder, radius, c))
    launch.shape["SPLIT"] = remainder is not None
    d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    d_tau = torch.empty_like(lse)
    tiles = launch.backward_tiles("M")
    query_kernel[launch.grid(tiles["M"], launch.heads)](
        q, k, v, *times, tau, bounds, *rows, d_q, d_tau, *launch.sizes, **launch.shape, **tiles
    )
    tiles = launch.backward_tiles("N")
    key_kernel[launch.grid(tiles["N"], launch.kv_heads)](
        q, k, v, *times, tau, bounds, *rows, d_k, d_v, *launch.sizes, **launch.shape, **tiles
    )
    return d_q, d_k, d_v, d_tau.sum().to(tau.dtype).expand_as(tau)


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

    def grid(self, rows: int, heads: int) -> tuple[int]:
        return (triton.cdiv(self.longest, rows) * self.sequences * heads,)

    def forward_tiles(self) -> dict[str, int]:
        keys = 64 if self.half and self.width <= 128 else 32
        return dict(M=128 if self.half else 64, N=keys, num_warps=8, num_stages=2)

    def backward_tiles(self, rows: str) -> dict[str, int]:
        """`rows` names the side that a program keeps."""
        kept = 64 if self.half and self.width <= 128 else 32
        warps = 4 if self.half and self.width <= 64 else 8
        other = "N" if rows == "M" else "M"
        return {rows: kept, other: 32, "num_warps": warps, "num_stages": 2}


def _prepare(
    d_out: Tensor, out: Tensor, remainder: Tensor | None, radius: Tensor, c: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradient of the weighted sums: its space part, high and low, and its time."""
    e, split = out.shape[-1] - 1, remainder is not None
    high = out.new_empty(*out.shape[:3], e)
    low, time = torch.empty_like(high) if split else None, torch.empty_like(radius)
    prepare_kernel[(triton.cdiv(radius.numel(), _ROWS),)](
        out, remainder, d_out, radius, high, low, time, c, radius.numel(),
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
