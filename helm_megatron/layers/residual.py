"""LorentzResidual, in Megatron's `self_attn_bda` and `mlp_bda` slots."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from helm_megatron.config import ambient_residual_scale
from helm_megatron.geometry import lorentz
from helm_megatron.kernels.residual.op import residual
from helm_megatron.kernels.residual_norm.op import residual_norm
from helm_megatron.layers.norm import RMSNorm
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
        # The norm that reads the result, if it is to be computed with it; in a tuple, so that it
        # stays its owner's module and not this one's too.
        self.norm_after: tuple[RMSNorm, ...] = ()
        self.scale = ambient_residual_scale(config) if scale is None else scale
        self.weight = replicated_parameter(config, 1, 1.0)
        learned = config.helm.learn_residual_scale if learn_scale is None else learn_scale
        self.log_scale = replicated_parameter(config, 1, math.log(self.scale)) if learned else None

    def combine(self, x: Tensor, f: Tensor) -> Tensor:
        """The residual point of x and f, `[.., d]`."""
        scale: lorentz.Scalar = self.scale
        if self.log_scale is not None:
            scale = lorentz.at_least_fp32(self.log_scale).exp()
        curvatures = self.config.helm.curvature, self.input_curvature
        if not self.norm_after:
            return residual(x, f, self.weight, scale, *curvatures)
        [norm] = self.norm_after
        return norm(lambda w, eps: residual_norm(x, f, self.weight, scale, w, eps, *curvatures))

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
        # Megatron enables gradients here, also where they are off: the weights would keep a graph
        # of the whole stream. (In training what is before may be frozen.)
        with torch.set_grad_enabled(training or f.requires_grad):
            return self.combine(x, F.dropout(f, dropout, training))


def join_norms(config: TransformerConfig, layers: Sequence[Any]) -> None:
    """Let the residuals of a stage's Megatron layers compute the norms that read their results.

    Those are our own RMSNorm, within a layer and in the next one, where both layers are of the same
    curvature throughout: else the stream is rescaled between them. The last one's is no RMSNorm.

    A residual and its norm must be recomputed together. Else the norm is computed anew after all,
    and its weight gets a gradient twice, the first one None, which Megatron's overlapped reduction
    of gradients refuses.
    """
    if config.recompute_granularity == "selective" and "layernorm" in config.recompute_modules:
        return
    for layer in layers:
        _join(layer.self_attn_bda, layer.pre_mlp_layernorm)
    if config.recompute_granularity == "full":
        return
    for layer, after in itertools.pairwise(layers):
        if type(layer) is type(after) is TransformerLayer:
            _join(layer.mlp_bda, after.input_layernorm)


def _join(residual: Any, norm: Any) -> None:
    if isinstance(norm, RMSNorm):
        residual.norm_after = (norm,)
