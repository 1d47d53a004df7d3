"""LorentzRMSNorm, which is RMSNorm of space coordinates, in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x `[..., d]` / sqrt(mean(x^2) + eps) * weight `[d]`, in at least fp32; returned in x's dtype.

    A point of any hyperboloid again, whose time follows from it.
    """
    wide = at_least_fp32(x)
    return F.rms_norm(wide, (x.shape[-1],), weight.to(wide.dtype), eps).to(x.dtype)
