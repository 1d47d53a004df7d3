"""Heads with their times for a dot-product kernel, and its sums back on the hyperboloid.

Both save next to nothing for the backward pass: the augmented heads and the sums, which the kernel
between them keeps anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar, computed_in
from helm_megatron.kernels import dispatch
from helm_megatron.kernels.augment import plain
from helm_megatron.kernels.augment.lanes import KEY, QUERY, VALUE
from helm_megatron.kernels.augment.rotary import Tables


def augment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tau: Tensor,
    c: Scalar,
    shift: Tensor | None = None,
    rotary: Tables | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`augment.plain`, which itself computes what is rare, a curvature that is a tensor.

    q, k `[.., heads, d]`, v `[.., heads, e]`; tau has one number, and shift needs no gradient.
    With rotary q and k `[s, b, heads, d]` are turned first, in at least fp32.
    """
    if isinstance(c, Tensor):
        return plain.augment(q, k, v, tau, c, shift, rotary)
    return _Augment.apply(q, k, v, tau, c, shift, rotary)


def centroid(m: Tensor, d: int, c: Scalar, shift: Tensor | None) -> Tensor:
    """`augment.plain`: sums of augmented values `[.., d + lanes]` as ambient points `[.., 1 + d]`.

    The twin itself computes what is rare, a curvature that is a tensor.
    """
    if isinstance(c, Tensor):
        return plain.centroid(m, d, c, shift)
    return _Centroid.apply(m, d, c, shift, plain.CENTROID_EPS[computed_in(m.dtype)])


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
        lifted = dispatch.implementation("augment", q).lifted
        queries = lifted(q, QUERY, c, tau=tau, rotary=rotary)
        keys = lifted(k, KEY, c, rotary=rotary)
        values = lifted(v, VALUE, c, shift=shift)
        ctx.save_for_backward(queries, keys, values, tau, shift)
        ctx.widths, ctx.rotary = (q.shape[-1], v.shape[-1]), rotary
        return queries, keys, values

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple:  # type: ignore[override]
        q, k, v, tau, shift = ctx.saved_tensors
        d, e = ctx.widths
        lifted_backward = dispatch.implementation("augment", q).lifted_backward
        d_q, d_tau = lifted_backward(d_q, q, d, QUERY, tau=tau, rotary=ctx.rotary)
        d_k, _ = lifted_backward(d_k, k, d, KEY, rotary=ctx.rotary)
        d_v, _ = lifted_backward(d_v, v, e, VALUE, shift=shift)
        return d_q, d_k, d_v, d_tau, None, None, None


class _Centroid(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, m: Tensor, d: int, c: float, shift: Tensor | None, eps: float
    ) -> Tensor:
        ctx.constants = d, c, eps
        out, norm2 = dispatch.implementation("augment", m).centroid(m, shift, d, c, eps)
        ctx.save_for_backward(m, shift, norm2)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple:  # type: ignore[override]
        m, shift, norm2 = ctx.saved_tensors
        function = dispatch.implementation("augment", m).centroid_backward
        return function(d_out, m, shift, *ctx.constants, norm2), None, None, None, None
