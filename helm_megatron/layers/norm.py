"""RMSNorm of space coordinates, which is LorentzRMSNorm: time follows from its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helm_megatron.kernels.rms_norm.op import rms_norm
from helm_megatron.layers.parallel import replicated_parameter
from helm_megatron.transformer_config import HelmTransformerConfig

# A residual that a norm is to finish: of the norm's weight and eps, its result and that one's norm.
Unfinished = Callable[[Tensor, float], tuple[Tensor, Tensor]]


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32, returned in x's dtype.

    Megatron's local norm refuses sequence parallelism; here the weight is marked for it.
    """

    def __init__(
        self, config: HelmTransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = replicated_parameter(config, hidden_size, 1.0)

    def forward(self, x: Tensor | Unfinished) -> Tensor | tuple[Tensor, Tensor]:
        """The norm of x; of an unfinished residual that of its result, and the result with it.

        Megatron's layer takes such a pair from any norm. (The residual is finished here since
        Megatron tells modules to fetch their weights when they are called.)
        """
        if isinstance(x, Tensor):
            return rms_norm(x, self.weight, self.eps)
        out, normed = x(self.weight, self.eps)
        return normed, out
