"""Triton kernels of `residual`: a program a token, its rows held in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar
from helm_megatron.kernels.common.rows import rows_of


def forward(
    x: Tensor, f: Tensor, weight: Tensor, scale: Scalar, c: float, c_x: float, eps: float
) -> tuple[Tensor, ...]:
    """out `[.., d]`, and of every token both times and <x,f>, `[.., 1]` in fp32."""
    points = rows_of(x)
    rows, d = points.shape
    out = torch.empty_like(points)
    tokens = torch.empty((3, *x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if rows:
        learned = isinstance(scale, Tensor)
        _forward[(rows,)](
            points, rows_of(f), weight, scale, out, tokens, rows, d, c, c_x, eps, learned,
            **block(d),
        )  # fmt: skip
    return out.view(x.shape), *tokens


def backward(
    grad: Tensor,
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    x_t: Tensor,
    f_t: Tensor,
    inner: Tensor,
    c: float,
    c_x: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """Gradients of x, f, the weight and the scale's logarithm."""
    points = rows_of(x)
    rows, d = points.shape
    by_x, by_f = torch.empty_like(points), torch.empty_like(points)
    sums = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    if rows:
        learned = isinstance(scale, Tensor)
        _backward[(rows,)](
            rows_of(grad), points, rows_of(f), weight, scale, x_t, f_t, inner, by_x, by_f, sums,
            rows, d, c, c_x, eps, learned, **block(d),
        )  # fmt: skip
    return by_x.view(x.shape), by_f.view(f.shape), *sums.sum(1)


def block(d: int) -> dict[str, int]:
    """Launch options of a program that holds rows of d features."""
    size = triton.next_power_of_2(d)
    return {"BLOCK": size, "num_warps": min(max(size // 512, 1), 16)}


@triton.jit
def factors(inner, weight, scale, c, c_x, eps, LEARNED: tl.constexpr):
    """w, n and k, as in `residual.factors`."""
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
def gradients(g, x_s, f_s, x_t, f_t, inner, w, n, k, c, eps):
    """A token's gradients of x and f, and its part of the weight's and the log scale's."""
    g_f = tl.sum(g * f_s, 0)
    g_z = tl.sum(g * x_s, 0) + w * g_f
    clamped = tl.abs(n) < eps
    by_n = tl.where(clamped, 0.0, g_z * k / (-2.0 * tl.where(clamped, 1.0, n)))
    by_inner = -2.0 * w * by_n
    by_x = k * g + by_inner * (f_s - f_t / x_t * x_s)
    by_f = k * w * g + by_inner * (x_s - x_t / f_t * f_s)
    return by_x, by_f, k * g_f + 2.0 * by_n * (c * w - inner), g_z * k


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
    grad, x, f, weight, scale, x_time, f_time, inner_product, by_x, by_f, sums, rows, d, c, c_x,
    eps, LEARNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    place = row * d + column
    g = tl.load(grad + place, inside, other=0.0).to(tl.float32)
    x_s = tl.load(x + place, inside, other=0.0).to(tl.float32)
    f_s = tl.load(f + place, inside, other=0.0).to(tl.float32)
    x_t, f_t = tl.load(x_time + row), tl.load(f_time + row)
    inner = tl.load(inner_product + row)
    w, n, k = factors(inner, weight, scale, c, c_x, eps, LEARNED)
    out_x, out_f, by_weight, by_log_scale = gradients(g, x_s, f_s, x_t, f_t, inner, w, n, k, c, eps)
    tl.store(by_x + place, out_x.to(by_x.dtype.element_ty), inside)
    tl.store(by_f + place, out_f.to(by_f.dtype.element_ty), inside)
    tl.store(sums + row, by_weight)
    tl.store(sums + rows + row, by_log_scale)
