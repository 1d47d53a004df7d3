"""The Lorentz residual and its norm, one after the other in plain torch."""

from __future__ import annotations

from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.geometry.lorentz import Scalar
from helm_megatron.kernels.rms_norm.plain import rms_norm


def residual_norm(
    x: Tensor,
    f: Tensor,
    weight: Scalar,
    scale: Scalar,
    norm_weight: Tensor,
    norm_eps: float,
    c: Scalar,
    c_x: Scalar | None = None,
) -> tuple[Tensor, Tensor]:
    """`geometry.lorentz.residual` of x and f `[.., d]`, and `rms_norm` of it, both `[.., d]`."""
    out = lorentz.residual(x, f, weight, scale, c, c_x=c_x)
    return out, rms_norm(out, norm_weight, norm_eps)
