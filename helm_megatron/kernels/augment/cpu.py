"""`augment`, `centroid` and `turned` in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar, at_least_fp32
from helm_megatron.kernels.augment.lanes import Lanes, augmented_width, is_wide
from helm_megatron.kernels.augment.rotary import Tables, transposed


def lifted(
    x: Tensor,
    lanes: Lanes,
    c: float,
    tau: Tensor | None = None,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> Tensor:
    """(x, lanes of sign * (time - shift), zeros); x is first turned, and multiplied by 2 / tau."""
    d, (sign, parts) = x.shape[-1], lanes
    out = x.new_empty(*x.shape[:-1], augmented_width(x.dtype, d, len(parts)))
    space = out[..., :d]
    factor = 1.0 if tau is None else 2 / at_least_fp32(tau)
    if rotary is None:
        torch.mul(x, factor, out=space)
    elif is_wide(x.dtype):
        _rotate(x, rotary, factor, space)
    else:
        space.copy_(_rotate(x.float(), rotary, factor, torch.empty_like(x, dtype=torch.float32)))
    time = (_norm2(space) + c * factor * factor).sqrt()
    time = sign * (time if shift is None else time - shift)
    if is_wide(x.dtype):
        out[..., d:] = time
        return out
    high = time.to(x.dtype)
    carried = high, (time - high).to(x.dtype)
    for lane, part in enumerate(parts, start=d):
        out[..., lane : lane + 1] = carried[part]
    out[..., d + len(parts) :] = 0
    return out


def lifted_backward(
    d_out: Tensor,
    out: Tensor,
    d: int,
    lanes: Lanes,
    tau: Tensor | None = None,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and tau, from the result of `lifted` and the gradient of that."""
    time, d_time = _time(out, d, lanes), _time_gradient(d_out, d, lanes)
    ratio = d_time / (time if shift is None else time + shift)
    d_space, space = at_least_fp32(d_out[..., :d]), at_least_fp32(out[..., :d])
    d_x = torch.addcmul(d_space, space, ratio)
    factor = 1.0 if tau is None else 2 / at_least_fp32(tau)
    if rotary is not None:
        d_x = _rotate(d_x, transposed(rotary), factor, torch.empty_like(d_x))
    elif tau is not None:
        d_x.mul_(factor)
    if tau is None:
        return d_x.to(out.dtype), None
    # Queries are homogeneous in 1 / tau: the gradient is their product with theirs.
    d_tau = -(_vecdot(space, d_space) + time * d_time).sum() / tau
    return d_x.to(out.dtype), d_tau.to(tau.dtype)


def centroid(
    m: Tensor, shift: Tensor | None, d: int, c: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Ambient points `[.., 1 + d]` of sums m `[.., width]`, and m_t^2 - |m_s|^2."""
    space, time = _sums(m, d, shift)
    length2 = _norm2(space)
    norm2 = time * time - length2
    radius = (c / norm2.abs().clamp_min(eps)).sqrt()
    out = m.new_empty(*m.shape[:-1], 1 + d)
    torch.mul(space, radius, out=out[..., 1:])
    out[..., :1] = (length2 * radius * radius + c).sqrt()
    return out, norm2


def centroid_backward(
    d_out: Tensor,
    m: Tensor,
    shift: Tensor | None,
    d: int,
    c: float,
    eps: float,
    norm2: Tensor,
) -> Tensor:
    """The gradient of m."""
    d_out = at_least_fp32(d_out)
    space, time = _sums(m, d, shift)
    length2 = time * time - norm2
    radius = (c / norm2.abs().clamp_min(eps)).sqrt()
    # The output's time is sqrt(radius^2 |m_s|^2 + c); `outward` brings its gradient into m_s.
    outward = radius * d_out[..., :1] / (length2 * radius * radius + c).sqrt()
    along = _vecdot(space, d_out[..., 1:]) + outward * length2
    along = torch.where(norm2.abs() > eps, along * radius / norm2, 0.0)
    d_m = torch.empty_like(m, memory_format=torch.contiguous_format)
    d_m[..., d:] = -along * time
    direct = d_out[..., 1:] * radius
    d_m[..., :d] = direct.addcmul_(space, outward * radius + along)
    return d_m


def turned(x: Tensor, rotary: Tables) -> Tensor:
    """x `[s, b, heads, d]` turned, in its dtype."""
    wide = at_least_fp32(x)
    out = torch.empty_like(wide, memory_format=torch.contiguous_format)
    return _rotate(wide, rotary, 1.0, out).to(x.dtype)


def _rotate(x: Tensor, rotary: Tables, factor: Scalar, out: Tensor) -> Tensor:
    """Fill out with the turned x, both `[s, b, heads, d]` in at least fp32, times factor."""
    width = rotary[0].shape[-1]
    (cos_1, cos_2), (sin_1, sin_2) = ((table * factor).chunk(2, dim=-1) for table in rotary)
    (x_1, x_2), (out_1, out_2) = (y[..., :width].chunk(2, dim=-1) for y in (x, out))
    torch.mul(x_1, cos_1, out=out_1).addcmul_(x_2, sin_1, value=-1)
    torch.mul(x_2, cos_2, out=out_2).addcmul_(x_1, sin_2)
    if width < x.shape[-1]:
        torch.mul(x[..., width:], factor, out=out[..., width:])
    return out


def _sums(m: Tensor, d: int, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """m_s and m_t in at least fp32."""
    wide = at_least_fp32(m)
    time = wide[..., d:].sum(-1, keepdim=True)
    return wide[..., :d], time if shift is None else time + shift


def _time(out: Tensor, d: int, lanes: Lanes) -> Tensor:
    """The time, less its shift, that the lanes carry, `[.., 1]`."""
    wide = at_least_fp32(out)
    time = wide[..., d : d + 1]
    if not is_wide(out.dtype):
        low = d + lanes.parts.index(1)
        time = time + wide[..., low : low + 1]
    return lanes.sign * time


def _time_gradient(d_out: Tensor, d: int, lanes: Lanes) -> Tensor:
    """The gradient of the time: the sum of those of the lanes with its high part.

    The low part is the time less the high part, so between them the lanes of the low part cancel.
    """
    wide = at_least_fp32(d_out)
    high = wide[..., d : d + 1]
    if not is_wide(d_out.dtype):
        for lane, part in enumerate(lanes.parts[1:], start=d + 1):
            high = high + wide[..., lane : lane + 1] if part == 0 else high
    return lanes.sign * high


def _norm2(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()


def _vecdot(a: Tensor, b: Tensor) -> Tensor:
    return (at_least_fp32(a) * at_least_fp32(b)).sum(-1, keepdim=True)
