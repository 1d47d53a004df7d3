"""The settings of a HELM model that Megatron's `TransformerConfig` has no field for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Curvatures within which fp32 activations keep their precision.
CURVATURES = (1e-3, 1e3)


@dataclass(frozen=True)
class HelmSettings:
    """Hyperbolic settings; the field `helm` of `HelmTransformerConfig`.

    A curvature c > 0 names the hyperboloid -x_t^2 + |x_s|^2 = -c, of sectional curvature -1/c.
    """

    geometry: Literal["lorentz", "euclidean"] = "lorentz"
    # Of the hidden activations, of the token embeddings, and of the input of the logits.
    curvature: float = 1.0
    embedding_curvature: float = 1.0
    output_curvature: float = 1.0
    # Of the first and of the last layer, within it; those between are spaced evenly.
    layer_curvature: tuple[float, float] | None = None
    # Whether Lorentz linears carry a bias; Megatron's `add_bias_linear` stays off, because its
    # mixture-of-experts layers refuse it.
    linear_bias: bool = True
    # Scale of the residual sum in units of sqrt(hidden_size + 1). HELM-D: 4, HELM-MiCE: 1.
    residual_scale: float = 1.0
    learn_residual_scale: bool = False
    embedding: Literal["euclidean", "lorentz"] = "euclidean"
    # Of a `lorentz` table; `adam` takes its space coordinates for Euclidean ones.
    embedding_optimizer: Literal["riemannian", "adam"] = "riemannian"
    embedding_retraction: bool = False
    # Factors on the learning rate of a table of points, and of learned curvatures.
    embedding_lr_mult: float = 1.0
    curvature_lr_mult: float = 1.0
    weight_decay_groups: Literal["megatron", "reference"] = "megatron"
    mice_combine: Literal["centroid", "reference"] = "centroid"
    mice_routing: Literal["megatron", "reference"] = "megatron"
    # How a router's selection bias follows its loads: Megatron's rule, or the released one.
    mice_bias_update: Literal["sign", "proportional"] = "sign"
    # Curvatures of the first and of the last expert; those between are spaced evenly by index.
    mice_curvature_init: tuple[float, float] = (1.0, 1.0)
    mice_learn_curvature: bool = True
    # Positions of the sequence whose logits are held at once; None: all.
    logits_chunk_size: int | None = None

    def expert_curvature(self, index: int, num_experts: int) -> float:
        """Initial curvature of the expert with the given global index."""
        return _spaced(self.mice_curvature_init, index, num_experts)

    def curvature_within_layer(self, index: int, num_layers: int) -> float:
        """Curvature within the layer with the given global index, from 0."""
        ends = self.layer_curvature
        return self.curvature if ends is None else _spaced(ends, index, num_layers)


def _spaced(ends: tuple[float, float], index: int, count: int) -> float:
    low, high = ends
    return low + (high - low) * index / max(count - 1, 1)
