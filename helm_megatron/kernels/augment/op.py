"""Heads with their times for a dot-product kernel, and its sums back on the hyperboloid.

Both save next to nothing for the backward pass: the augmented heads and the sums, which the kernel
between them keeps anyway. Their plain twins are the functions of `augment.plain`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.augment.rotary import Tables, rotate, transposed

# The lanes of a time: its sign, and which of its parts they carry, 0 high and 1 low. Where the
# dtype is wide enough one lane has it all.
_QUERY, _KEY, _VALUE = (-1, (0, 0, 1)), (1, (0, 1, 0)), (1, (0, 1))
Lanes = tuple[int, tuple[int, ...]]


def augmented_width(dtype: torch.dtype, d: int, lanes: int) -> int:
    """Width of a head of d space coordinates with its time lanes.

    In low precision up to a multiple of 8, for fused kernels; else one lane carries the time.
    """
    return d + 1 if torch.finfo(dtype).bits >= 32 else -(-(d + lanes) // 8) * 8


def augment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: Tensor,
    c: float,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`augment_query`, `augment_key` and `augment_value` in one: see there.

    q, k `[.., heads, d]`, v `[.., heads, e]`; tau has one number, and shift needs no gradient.
    With rotary q and k `[s, b, heads, d]` are turned first, in at least fp32.
    """
    return _Augment.apply(q, k, v, tau, c, shift, rotary)


def centroid(m: Tensor, d: int, c: float, shift: Tensor | None, eps: float) -> Tensor:
    """Sums of augmented values `[.., d + lanes]` as ambient points `[.., 1 + d]` of L_c.

    |<m,m>| is clamped at eps.
    """
    return _Centroid.apply(m, d, c, shift, eps)


class _Augment(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tau: Tensor,
        c: float,
        shift: Tensor | None,
        rotary: Tables | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries = _lifted(q, _QUERY, c, tau=tau, rotary=rotary)
        keys = _lifted(k, _KEY, c, rotary=rotary)
        values = _lifted(v, _VALUE, c, shift=shift)
        ctx.save_for_backward(queries, keys, values, tau, shift)
        ctx.widths, ctx.rotary = (q.shape[-1], v.shape[-1]), rotary
        return queries, keys, values

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple:  # type: ignore[override]
        q, k, v, tau, shift = ctx.saved_tensors
        d, e = ctx.widths
        dq, dtau = _lifted_backward(q, dq, d, _QUERY, tau=tau, rotary=ctx.rotary)
        dk, _ = _lifted_backward(k, dk, d, _KEY, rotary=ctx.rotary)
        dv, _ = _lifted_backward(v, dv, e, _VALUE, shift=shift)
        return dq, dk, dv, dtau, None, None, None


class _Centroid(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, m: Tensor, d: int, c: float, shift: Tensor | None, eps: float
    ) -> Tensor:
        ctx.d, ctx.c, ctx.eps = d, c, eps
        if dispatch.uses_triton(m):
            out, norm2 = dispatch.kernels("augment.triton").centroid(m, d, c, shift, eps)
            ctx.save_for_backward(m, norm2, shift)
            return out
        wide = at_least_fp32(m)
        space, time = wide[..., :d], wide[..., d:].sum(-1, keepdim=True)
        time = time if shift is None else time + shift
        length2 = _norm2(space)
        norm2 = time * time - length2
        radius = (c / norm2.abs().clamp_min(eps)).sqrt()
        out = m.new_empty(*m.shape[:-1], 1 + d)
        torch.mul(space, radius, out=out[..., 1:])
        out[..., :1] = (length2 * radius * radius + c).sqrt()
        ctx.save_for_backward(m, norm2, shift)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        m, norm2, shift = ctx.saved_tensors
        d, c = ctx.d, ctx.c
        if dispatch.uses_triton(m):
            kernels = dispatch.kernels("augment.triton")
            dm = kernels.centroid_backward(m, norm2, grad, d, c, shift, ctx.eps)
            return dm, None, None, None, None
        wide, grad = at_least_fp32(m), at_least_fp32(grad)
        space, time = wide[..., :d], wide[..., d:].sum(-1, keepdim=True)
        time = time if shift is None else time + shift
        length2 = time * time - norm2
        radius = (c / norm2.abs().clamp_min(ctx.eps)).sqrt()
        # The output's time is sqrt(radius^2 |m_s|^2 + c); `outward` brings its gradient into m_s.
        outward = radius * grad[..., :1] / (length2 * radius * radius + c).sqrt()
        along = _vecdot(space, grad[..., 1:]) + outward * length2
        along = torch.where(norm2.abs() > ctx.eps, along * radius / norm2, 0.0)
        dm = torch.empty_like(m, memory_format=torch.contiguous_format)
        dm[..., d:] = -along * time
        direct = grad[..., 1:] * radius
        dm[..., :d] = direct.addcmul_(space, outward * radius + along)
        return dm, None, None, None, None


def _lifted(
    x: Tensor,
    lanes: Lanes,
    c: float,
    tau: Tensor | None = None,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> Tensor:
    """(x, lanes of sign * (time - shift), zeros); x is first turned, and multiplied by 2 / tau."""
    d, (sign, parts) = x.shape[-1], lanes
    width = augmented_width(x.dtype, d, len(parts))
    if dispatch.uses_triton(x):
        kernels = dispatch.kernels("augment.triton")
        return kernels.lifted(x, width, *_lane_numbers(x.dtype, lanes), c, tau, shift, rotary)
    out = x.new_empty(*x.shape[:-1], width)
    space = out[..., :d]
    factor = 1.0 if tau is None else 2 / at_least_fp32(tau)
    if rotary is None:
        torch.mul(x, factor, out=space)
    elif at_least_fp32(x) is x:
        rotate(x, rotary, factor, space)
    else:
        space.copy_(rotate(x.float(), rotary, factor, torch.empty_like(x, dtype=torch.float32)))
    time = (_norm2(space) + c * factor * factor).sqrt()
    time = sign * (time if shift is None else time - shift)
    if torch.finfo(x.dtype).bits >= 32:
        out[..., d:] = time
        return out
    high = time.to(x.dtype)
    carried = high, (time - high).to(x.dtype)
    for lane, part in enumerate(parts, start=d):
        out[..., lane : lane + 1] = carried[part]
    out[..., d + len(parts) :] = 0
    return out


def _lifted_backward(
    out: Tensor,
    grad: Tensor,
    d: int,
    lanes: Lanes,
    tau: Tensor | None = None,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradients by x and tau of `_lifted`, from its result and the gradient by that."""
    if dispatch.uses_triton(out):
        kernels = dispatch.kernels("augment.triton")
        numbers = _lane_numbers(out.dtype, lanes)
        return kernels.lifted_backward(out, grad, d, *numbers, tau, shift, rotary)
    time, slope = _time(out, d, lanes), _time_gradient(grad, d, lanes)
    ratio = slope / (time if shift is None else time + shift)
    g_space, space = at_least_fp32(grad[..., :d]), at_least_fp32(out[..., :d])
    dx = torch.addcmul(g_space, space, ratio)
    factor = 1.0 if tau is None else 2 / at_least_fp32(tau)
    if rotary is not None:
        dx = rotate(dx, transposed(rotary), factor, torch.empty_like(dx))
    elif tau is not None:
        dx.mul_(factor)
    if tau is None:
        return dx.to(out.dtype), None
    # Queries are homogeneous in 1 / tau: the gradient is their product with theirs.
    dtau = -(_vecdot(space, g_space) + time * slope).sum() / tau
    return dx.to(out.dtype), dtau.to(tau.dtype)


def _lane_numbers(dtype: torch.dtype, lanes: Lanes) -> tuple[int, int, int]:
    """Sign, number of lanes, and which of them has the low part: none, if one has it all."""
    sign, parts = lanes
    if torch.finfo(dtype).bits >= 32:
        return sign, 1, 1 << 20
    return sign, len(parts), parts.index(1)


def _time(out: Tensor, d: int, lanes: Lanes) -> Tensor:
    """The time, less its shift, that the lanes carry, `[.., 1]`."""
    sign, parts = lanes
    wide = at_least_fp32(out)
    time = wide[..., d : d + 1]
    if torch.finfo(out.dtype).bits < 32:
        low = d + parts.index(1)
        time = time + wide[..., low : low + 1]
    return sign * time


def _time_gradient(grad: Tensor, d: int, lanes: Lanes) -> Tensor:
    """The gradient by the time: the sum of those by the lanes with its high part.

    The low part is the time less the high part, so between them the lanes of the low part cancel.
    """
    sign, parts = lanes
    wide = at_least_fp32(grad)
    high = wide[..., d : d + 1]
    if torch.finfo(grad.dtype).bits < 32:
        for lane, part in enumerate(parts[1:], start=d + 1):
            high = high + wide[..., lane : lane + 1] if part == 0 else high
    return sign * high


def _norm2(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()


def _vecdot(a: Tensor, b: Tensor) -> Tensor:
    return (at_least_fp32(a) * at_least_fp32(b)).sum(-1, keepdim=True)
