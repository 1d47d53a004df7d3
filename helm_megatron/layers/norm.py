"""RMSNorm of space coordinates, which is LorentzRMSNorm: time follows from its output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.layers.parallel import replicated_parameter


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32, returned in x's dtype.

    Megatron's local norm refuses sequence parallelism; here the weight is marked for it.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = replicated_parameter(config, hidden_size, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_fp32(x)
        weight = self.weight.to(wide.dtype)
        return F.rms_norm(wide, (x.shape[-1],), weight, self.eps).to(x.dtype)
