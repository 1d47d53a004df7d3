"""Triton kernels of `residual_norm`: `residual`, and the norm of the rows held in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helm_megatron.geometry.lorentz import RESIDUAL_EPS, Scalar
from helm_megatron.kernels.common.arithmetic import rounded
from helm_megatron.kernels.common.rows import rows_of
from helm_megatron.kernels.residual.triton import block, combined, factors, gradients

# How many programs share the tokens in the backward pass, at most; each adds up its part of the
# gradient of the norm's weight.
MAX_PROGRAMS = 1024


def forward(
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    c: float,
    c_x: float,
    norm_weight: Tensor,
    norm_eps: float,
) -> tuple[Tensor, ...]:
    """out and its norm `[.., d]`; of every token both times, <x,f> and 1/rms, `[.., 1]` in fp32."""
    points = rows_of(x)
    rows, d = points.shape
    out, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    tokens = torch.empty((4, *x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if rows:
        learned = isinstance(scale, Tensor)
        _forward[(rows,)](
            points, rows_of(f), weight, scale, norm_weight, out, normed, tokens, rows, d, c, c_x,
            norm_eps, RESIDUAL_EPS, learned, **block(d),
        )  # fmt: skip
    return out, normed, *tokens


def backward(
    d_out: Tensor,
    d_normed: Tensor,
    x: Tensor,
    f: Tensor,
    weight: Tensor,
    scale: Scalar,
    c: float,
    c_x: float,
    norm_weight: Tensor,
    x_t: Tensor,
    f_t: Tensor,
    inner: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x, f, the weight, the scale's logarithm and the norm's weight."""
    points = rows_of(x)
    rows, d = points.shape
    d_x, d_f = torch.empty_like(points), torch.empty_like(points)
    sums = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    rows_each = triton.cdiv(rows, MAX_PROGRAMS)
    programs = triton.cdiv(rows, rows_each) if rows else 0
    d_norm_weight = torch.empty((programs, d), dtype=torch.float32, device=x.device)
    if rows:
        learned = isinstance(scale, Tensor)
        _backward[(programs,)](
            rows_of(d_out), rows_of(d_normed), points, rows_of(f), weight, scale, norm_weight,
            x_t, f_t, inner, rstd, d_x, d_f, d_norm_weight, sums, rows, rows_each, d, c, c_x,
            RESIDUAL_EPS, learned, **block(d),
        )  # fmt: skip
    return d_x.view(x.shape), d_f.view(f.shape), *sums.sum(1), d_norm_weight.sum(0)


@triton.jit
def _forward(
    x, f, weight, scale, norm_weight, out, normed, tokens, rows, d, c, c_x, norm_eps, eps,
    LEARNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    place = row * d + column
    z, x_t, f_t, inner = combined(x, f, place, inside, weight, scale, c, c_x, eps, LEARNED)
    point = rounded(z, out.dtype.element_ty)
    o = point.to(tl.float32)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(o * o, 0) / d + norm_eps)
    g = tl.load(norm_weight + column, inside, other=0.0).to(tl.float32)
    tl.store(out + place, point, inside)
    tl.store(normed + place, (o * rstd * g).to(normed.dtype.element_ty), inside)
    tl.store(tokens + row, x_t)
    tl.store(tokens + rows + row, f_t)
    tl.store(tokens + 2 * rows + row, inner)
    tl.store(tokens + 3 * rows + row, rstd)


@triton.jit
def _backward(
    d_out, d_normed, x, f, weight, scale, norm_weight, x_time, f_time, inner_product, rms_inverse,
    d_x, d_f, d_norm_weight, sums, rows, rows_each, d, c, c_x, eps, LEARNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    norm_w = tl.load(norm_weight + column, inside, other=0.0).to(tl.float32)
    d_norm_w = tl.zeros([BLOCK], tl.float32)
    first = program * rows_each
    for row in range(first, tl.minimum(first + rows_each, rows)):
        place = row * d + column
        x_s = tl.load(x + place, inside, other=0.0).to(tl.float32)
        f_s = tl.load(f + place, inside, other=0.0).to(tl.float32)
        d_o = tl.load(d_normed + place, inside, other=0.0).to(tl.float32)
        x_t, f_t = tl.load(x_time + row), tl.load(f_time + row)
        inner, rstd = tl.load(inner_product + row), tl.load(rms_inverse + row)
        w, n, k = factors(inner, weight, scale, c, c_x, eps, LEARNED)
        o = rounded((x_s + w * f_s) * k, d_x.dtype.element_ty).to(tl.float32) * rstd
        d_norm_w += d_o * o
        d_o = d_o * norm_w
        d_o = (d_o - o * (tl.sum(d_o * o, 0) / d)) * rstd
        d_o += tl.load(d_out + place, inside, other=0.0).to(tl.float32)
        d_x_s, d_f_s, d_weight, d_log_scale = gradients(
            d_o, x_s, f_s, x_t, f_t, inner, w, n, k, c, eps
        )
        tl.store(d_x + place, d_x_s.to(d_x.dtype.element_ty), inside)
        tl.store(d_f + place, d_f_s.to(d_f.dtype.element_ty), inside)
        tl.store(sums + row, d_weight)
        tl.store(sums + rows + row, d_log_scale)
    tl.store(d_norm_weight + program * d + column, d_norm_w, inside)
