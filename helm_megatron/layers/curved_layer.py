"""A transformer layer on a hyperboloid of its own."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.transformer_config import HelmTransformerConfig


def with_curvature(config: HelmTransformerConfig, curvature: float) -> HelmTransformerConfig:
    """A copy of the config with another curvature of the hidden activations."""
    config = copy.copy(config)
    config.helm = dataclasses.replace(config.helm, curvature=curvature)
    return config


class CurvedLayer(TransformerLayer):
    """Megatron's layer at `curvature`: its input is brought there, and its output back.

    Between layers points are of the model's hidden curvature, so a layer need not know its
    neighbors, which may be on other pipeline stages.
    """

    def __init__(
        self, config: HelmTransformerConfig, *args: Any, curvature: float, **kwargs: Any
    ) -> None:
        super().__init__(with_curvature(config, curvature), *args, **kwargs)
        self.outer_curvature = config.helm.curvature

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Space coordinates `[s, b, d]` to the same; what Megatron's layer returns besides too."""
        outer, inner = self.outer_curvature, self.config.helm.curvature
        x = lorentz.rescale(hidden_states, outer, inner)
        y, context = super().forward(x, *args, **kwargs)
        return lorentz.rescale(y, inner, outer), context
