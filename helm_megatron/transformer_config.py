"""Megatron's configs of a transformer with HELM's settings as a field."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from megatron.core.transformer import MLATransformerConfig, TransformerConfig

from helm_megatron.config import HelmSettings


@dataclass
class HelmTransformerConfig(TransformerConfig):
    """The config of a HELM model or its Euclidean twin, from which all its modules are built."""

    helm: HelmSettings = field(default_factory=HelmSettings)


@dataclass
class HelmMLATransformerConfig(MLATransformerConfig, HelmTransformerConfig):
    """The same with latent attention."""


def with_settings(config: TransformerConfig, helm: HelmSettings) -> HelmTransformerConfig:
    """A config that Megatron has made of arguments, as the config of a HELM model.

    Megatron makes its own class, whatever class it is given, if the arguments ask for latent
    attention. Its fields are taken as they are: those that follow from others are computed already.

    Raises:
        KeyError: it is a config of another kind of model.
    """
    made: HelmTransformerConfig = object.__new__(_KINDS[type(config)])
    made.__dict__.update(vars(config), helm=helm)
    return made


_KINDS = {
    TransformerConfig: HelmTransformerConfig,
    MLATransformerConfig: HelmMLATransformerConfig,
}


def ambient_residual_scale(config: HelmTransformerConfig) -> float:
    """The factor of the residual sum: `residual_scale` times sqrt of the ambient width."""
    return config.helm.residual_scale * math.sqrt(config.hidden_size + 1)
