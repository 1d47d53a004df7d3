"""RMSNorm of space coordinates, which is LorentzRMSNorm: time follows from its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from helm_megatron.kernels.rms_norm.op import rms_norm
from helm_megatron.layers.parallel import replicated_parameter

# Of a norm's weight and eps: a tensor together with its norm.
Joined = Callable[[Tensor, float], tuple[Tensor, Tensor]]


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

    def forward(self, x: Tensor | Joined) -> Tensor:
        """The norm of x.

        Of a function instead, call it and return its tensor, whose norm is kept with it until this
        module is asked for it. (The function is called here, and not by its owner, since modules
        are told by Megatron to fetch their weights when they are called.)
        """
        if isinstance(x, Tensor):
            normed = self._kept(x)
            return rms_norm(x, self.weight, self.eps) if normed is None else normed
        out, normed = x(self.weight, self.eps)
        out.norm_of = self, normed, _version(out)  # type: ignore[attr-defined]
        return out

    def _kept(self, x: Tensor) -> Tensor | None:
        """The norm that came with x, if it still is x's here, gradient and all."""
        owner, normed, version = x.__dict__.pop("norm_of", (None, None, None))
        if owner is not self or version != _version(x):
            return None
        if not torch.is_grad_enabled():
            return normed.detach()
        # x may have come out of a recomputed region, which cut it off from what it was made by.
        return normed if normed.grad_fn is x.grad_fn is not None else None


def _version(x: Tensor) -> int:
    """How often x has been changed in place, as far as torch counts."""
    return 0 if x.is_inference() else x._version
