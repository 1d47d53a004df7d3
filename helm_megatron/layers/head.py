"""The end of a HELM model: final projection and norm, then logits of the ambient vector."""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.layers.linear import lorentz_column
from helm_megatron.transformer_config import HelmTransformerConfig


class FinalProjectionNorm(MegatronModule):
    """LorentzLinear hidden -> hidden, brought to the output curvature, then LorentzRMSNorm.

    It stands in the block's final layernorm slot. The projection is replicated: one matrix in
    the whole model is not worth a collective.
    """

    def __init__(
        self,
        config: HelmTransformerConfig,
        hidden_size: int,
        eps: float,
        linear: Any,
        norm: Any,
        **_: Any,
    ) -> None:
        super().__init__(config)
        self.proj = linear(
            hidden_size,
            hidden_size,
            config=config,
            init_method=config.init_method,
            bias=False,
            skip_bias_add=False,
            skip_weight_param_allocation=False,
        )
        self.norm = norm(config=config, hidden_size=hidden_size, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """`[s, b, hidden]` at the hidden curvature to `[s, b, hidden]` at the output curvature."""
        y, _ = self.proj(x)
        helm = self.config.helm
        return self.norm(lorentz.rescale(y, helm.curvature, helm.output_curvature))


def lorentz_output_layer(euclidean: ColumnParallelLinear, config: HelmTransformerConfig) -> Any:
    """The vocabulary-parallel output layer built around the weight of Megatron's own.

    `euclidean` is the output layer that GPTModel has made, with any backend Megatron's local
    linear; its weight (None if it is tied to the embedding) is taken over, so that the vocabulary
    matrix is never held twice.
    """
    layer = lorentz_column(ColumnParallelLinear)(
        euclidean.input_size,
        euclidean.output_size,
        config=config,
        init_method=config.init_method,
        bias=None,
        gather_output=euclidean.gather_output,
        skip_weight_param_allocation=True,
        embedding_activation_buffer=euclidean.embedding_activation_buffer,
        grad_output_buffer=euclidean.grad_output_buffer,
        tp_group=euclidean.tp_group,
    )
    layer.weight = euclidean.weight
    layer.time_weight.is_embedding_or_output_parameter = True
    layer.curvature = config.helm.output_curvature
    return layer
