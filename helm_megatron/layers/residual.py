"""LorentzResidual, in Megatron's `self_attn_bda` and `mlp_bda` slots."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from helm_megatron.config import ambient_residual_scale
from helm_megatron.geometry import lorentz
from helm_megatron.kernels.residual import residual
from helm_megatron.layers.parallel import replicated_parameter


class LorentzResidual(MegatronModule):
    """The normalized ambient sum x + w f, times a scale (LResNet in the released code).

    w starts at 1; the scale is `ambient_residual_scale`, or its learned exponential.
    """

    def __init__(
        self,
        config: TransformerConfig,
        scale: float | None = None,
        learn_scale: bool | None = None,
    ) -> None:
        super().__init__(config)
        # Of x, where it is not the hidden one: that of the embeddings in the first residual.
        self.input_curvature: float | None = None
        self.scale = ambient_residual_scale(config) if scale is None else scale
        self.weight = replicated_parameter(config, 1, 1.0)
        learned = config.helm.learn_residual_scale if learn_scale is None else learn_scale
        self.log_scale = replicated_parameter(config, 1, math.log(self.scale)) if learned else None

    def combine(self, x: Tensor, f: Tensor) -> Tensor:
        """The residual point of x and f, `[.., d]`."""
        scale: lorentz.Scalar = self.scale
        if self.log_scale is not None:
            scale = lorentz.at_least_fp32(self.log_scale).exp()
        return residual(x, f, self.weight, scale, self.config.helm.curvature, self.input_curvature)

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:
        """Megatron's protocol: returns the function of ((f, bias), x, dropout probability)."""
        return functools.partial(self._bias_dropout_add, training)

    def _bias_dropout_add(
        self,
        training: bool,
        f_with_bias: tuple[Tensor, Tensor | None],
        x: Tensor,
        dropout: float,
    ) -> Tensor:
        f, bias = f_with_bias
        if bias is not None:
            f = f + bias
        return self.combine(x, F.dropout(f, dropout, training))
