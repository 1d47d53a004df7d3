"""LorentzResidual, in Megatron's `self_attn_bda` and `mlp_bda` slots."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from helm_megatron.geometry.lorentz import Scalar, at_least_fp32
from helm_megatron.kernels.residual.op import residual
from helm_megatron.kernels.residual_norm.op import residual_norm
from helm_megatron.layers.norm import Unfinished
from helm_megatron.layers.parallel import replicated_parameter
from helm_megatron.transformer_config import HelmTransformerConfig, ambient_residual_scale


class LorentzResidual(MegatronModule):
    """The normalized ambient sum x + w f, times a scale (LResNet in the released code).

    w starts at 1; the scale is `ambient_residual_scale`, or its learned exponential. One that is
    `joined` is finished by the `RMSNorm` after it in its layer, both in one pass.
    """

    def __init__(
        self,
        config: HelmTransformerConfig,
        scale: float | None = None,
        learn_scale: bool | None = None,
        joined: bool = False,
    ) -> None:
        super().__init__(config)
        # Of x, where it is not the hidden one: that of the embeddings in the first residual.
        self.input_curvature: float | None = None
        self.joined = joined
        self.scale = ambient_residual_scale(config) if scale is None else scale
        self.weight = replicated_parameter(config, 1, 1.0)
        learned = config.helm.learn_residual_scale if learn_scale is None else learn_scale
        self.log_scale = replicated_parameter(config, 1, math.log(self.scale)) if learned else None

    def combine(self, x: Tensor, f: Tensor) -> Tensor:
        """The residual point of x and f, `[.., d]`."""
        return residual(x, f, self.weight, self._scale(), *self._curvatures())

    def combine_with_norm(
        self, x: Tensor, f: Tensor, norm_weight: Tensor, norm_eps: float
    ) -> tuple[Tensor, Tensor]:
        """The residual point of x and f `[.., d]`, and its norm."""
        norm = norm_weight, norm_eps
        return residual_norm(x, f, self.weight, self._scale(), *norm, *self._curvatures())

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor | Unfinished]:
        """Megatron's protocol: returns the function of ((f, bias), x, dropout probability)."""
        return functools.partial(self._bias_dropout_add, training)

    def _scale(self) -> Scalar:
        return self.scale if self.log_scale is None else at_least_fp32(self.log_scale).exp()

    def _curvatures(self) -> tuple[float, float | None]:
        return self.config.helm.curvature, self.input_curvature

    def _bias_dropout_add(
        self,
        training: bool,
        f_with_bias: tuple[Tensor, Tensor | None],
        x: Tensor,
        dropout: float,
    ) -> Tensor | Unfinished:
        f, bias = f_with_bias
        if bias is not None:
            f = f + bias
        f = F.dropout(f, dropout, training)
        if self.joined:
            return functools.partial(self.combine_with_norm, x, f)
        # Megatron enables gradients here, also where they are off: the weights would keep a graph
        # of the whole stream. (In training what is before may be frozen.)
        with torch.set_grad_enabled(training or f.requires_grad):
            return self.combine(x, f)


def can_join(config: HelmTransformerConfig) -> bool:
    """Whether a layer's residual can be left to its norm: only a tensor can be where Megatron
    recomputes, offloads, schedules or captures a part of a layer by itself.
    """
    selective = config.recompute_granularity == "selective"
    return not (
        (selective and "layernorm" in config.recompute_modules)
        or config.fine_grained_activation_offloading
        or config.overlap_moe_expert_parallel_comm
        or config.cuda_graph_impl != "none"
    )
