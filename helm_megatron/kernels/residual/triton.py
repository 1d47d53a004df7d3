"""Triton kernels of `residual`: a program a token, its rows held in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helm_megatron.geometry.lorentz import RESIDUAL_EPS, Scalar
from helm_megatron.kernels.common.rows import rows_of


def forward(
    x: Tensor, f: Tensor, weight: Tensor, scale: Scalar, c: float, c_x: float
) -> tuple[Tensor, ...]:
    """out `[.., d]`, and of every token both times and <x,f>, `[.., 1]` in fp32."""
    points = rows_of(x)
    rows, d = points.shape
    out = torch.empty_like(points)
    tokens = torch.empty((3, *x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if rows:
        learned = isinstance(scale, Tensor)
        _forward[(rows,)](
            points, rows_of(f), weight, scale, out, tokens, rows, d, c, c_x, RESIDUAL_EPS, learned,
            **block(d),
        )  # fmt: skip
    return out.view(x.shape), *tokens


def backward(
    d_out: Tensor,
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    c: float,
    c_x: float,
    x_t: Tensor,
    f_t: Tensor,
    inner: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x, f, the weight and the scale's logarithm."""
    points = rows_of(x)
    rows, d = points.shape
    d_x, d_f = torch.empty_like(points), torch.empty_like(points)
    sums = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    if rows:
        learned = isinstance(scale, Tensor)
        _backward[(rows,)](
            rows_of(d_out), points, rows_of(f), weight, scale, x_t, f_t, inner, d_x, d_f, sums,
            rows, d, c, c_x, RESIDUAL_EPS, learned, **block(d),
        )  # fmt: skip
    return d_x.view(x.shape), d_f.view(f.shape), *sums.sum(1)


def block(d: int) -> dict[str, int]:
    """Launch options of a program that holds rows of d features."""
    size = triton.next_power_of_2(d)
    return {"BLOCK": size, "num_warps": min(max(size // 512, 1), 16)}


@triton.jit
def factors(inner, weight, scale, c, c_x, eps, LEARNED: tl.constexpr):
    """w, n and k, as in `residual.cpu`."""
    w = tl.load(weight).to(tl.float32)
    factor = tl.load(scale).to(tl.float32) if LEARNED else scale
    n = c_x + c * w * w - 2.0 * w * inner
    return w, n, factor * tl.sqrt(c / tl.maximum(tl.abs(n), eps))


@triton.jit
def combined(x, f, place, inside, weight, scale, c, c_x, eps, LEARNED: tl.constexpr):
    """The residual point of a token, both times and <x,f>."""
    x_s = tl.load(x + place, inside, other=0.0).to(tl.float32)
    f_s = tl.load(f + place, inside, other=0.0).to(tl.float32)
    x_t = tl.sqrt_rn(tl.sum(x_s * x_s, 0) + c_x)
    f_t = tl.sqrt_rn(tl.sum(f_s * f_s, 0) + c)
    inner = tl.sum(x_s * f_s, 0) - x_t * f_t
    w, _, k = factors(inner, weight, scale, c, c_x, eps, LEARNED)
    return (x_s + w * f_s) * k, x_t, f_t, inner


@triton.jit
def gradients(d_o, x_s, f_s, x_t, f_t, inner, w, n, k, c, eps):
    """A token's gradients of x and f, and its part of the weight's and the log scale's."""
    along_f = tl.sum(d_o * f_s, 0)
    along_z = tl.sum(d_o * x_s, 0) + w * along_f
    clamped = tl.abs(n) < eps
    d_n = tl.where(clamped, 0.0, along_z * k / (-2.0 * tl.where(clamped, 1.0, n)))
    d_inner = -2.0 * w * d_n
    d_x_s = k * d_o + d_inner * (f_s - f_t / x_t * x_s)
    d_f_s = k * w * d_o + d_inner * (x_s - x_t / f_t * f_s)
    return d_x_s, d_f_s, k * along_f + 2.0 * d_n * (c * w - inner), along_z * k


@triton.jit
def _forward(
    x, f, weight, scale, out, tokens, rows, d, c, c_x, eps, LEARNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    place = row * d + column
    z, x_t, f_t, inner = combined(x, f, place, inside, weight, scale, c, c_x, eps, LEARNED)
    tl.store(out + place, z.to(out.dtype.element_ty), inside)
    tl.store(tokens + row, x_t)
    tl.store(tokens + rows + row, f_t)
    tl.store(tokens + 2 * rows + row, inner)


@triton.jit
def _backward(
    d_out, x, f, weight, scale, x_time, f_time, inner_product, d_x, d_f, sums, rows, d, c, c_x,
    eps, LEARNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    place = row * d + column
    d_o = tl.load(d_out + place, inside, other=0.0).to(tl.float32)
    x_s = tl.load(x + place, inside, other=0.0).to(tl.float32)
    f_s = tl.load(f + place, inside, other=0.0).to(tl.float32)
    x_t, f_t = tl.load(x_time + row), tl.load(f_time + row)
    inner = tl.load(inner_product + row)
    w, n, k = factors(inner, weight, scale, c, c_x, eps, LEARNED)
    d_x_s, d_f_s, d_weight, d_log_scale = gradients(d_o, x_s, f_s, x_t, f_t, inner, w, n, k, c, eps)
    tl.store(d_x + place, d_x_s.to(d_x.dtype.element_ty), inside)
    tl.store(d_f + place, d_f_s.to(d_f.dtype.element_ty), inside)
    tl.store(sums + row, d_weight)
    tl.store(sums + rows + row, d_log_scale)
