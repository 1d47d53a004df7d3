"""Which parameters of a HELM model decay, and which have a learning rate of their own."""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import ParamKey
from megatron.core.optimizer.optimizer_config import OptimizerConfig, ParamWithNamePredicate
from megatron.core.transformer import TransformerConfig
from torch.nn import Parameter

from helm_megatron.transformer_config import HelmTransformerConfig

Overrides = dict[ParamKey, dict[str, Any]]

# The entry of the group of points that holds their curvature parameter.
POINTS = "points_curvature"
_EMBEDDING = "embedding.word_embeddings.weight"
_CURVATURE = "curvature.raw"


def helm_overrides(
    config: OptimizerConfig, model: TransformerConfig, overrides: Overrides
) -> Overrides:
    """Megatron's overrides of parameter groups with those of the model's hyperbolic settings.

    A `helm` setting `weight_decay_groups` of "megatron" keeps Megatron's rule, no decay for biases
    and vectors, except that the time weight of a linear decays: it is a column of its matrix.
    "reference" is the released rule. Points and curvatures never decay.
    """
    if not isinstance(model, HelmTransformerConfig) or model.helm.geometry != "lorentz":
        return overrides
    helm = model.helm
    if helm.weight_decay_groups == "reference":
        overrides = {key: value for key, value in overrides.items() if value != {"wd_mult": 0.0}}
        overrides[_named("reference_no_decay", _has_no_decay(model))] = {"wd_mult": 0.0}
    else:
        overrides = {_without_time(key, value): value for key, value in overrides.items()}
    # The rate that a table has anyhow, if not the common one.
    rates = {
        "curvature": (config.lr, config.min_lr),
        "embedding": (config.decoupled_lr or config.lr, config.decoupled_min_lr or config.min_lr),
    }
    learned = _multiplied(*rates["curvature"], helm.curvature_lr_mult)
    overrides[_named("curvature", _is_curvature)] = {"wd_mult": 0.0, **learned}
    if trains_points(model):
        overrides[_named("points", is_points)] = {
            "wd_mult": 0.0,
            # Sets the group apart from others without decay: Megatron finds the groups of a
            # checkpoint by these numbers.
            "start_wd": 0.0,
            "end_wd": 0.0,
            POINTS: helm.embedding_curvature,
            "retraction": helm.embedding_retraction,
            **_multiplied(*rates["embedding"], helm.embedding_lr_mult),
        }
    return overrides


def trains_points(model: TransformerConfig) -> bool:
    """Whether the model's embedding is a table of points for Riemannian Adam."""
    return (
        isinstance(model, HelmTransformerConfig)
        and model.helm.geometry == "lorentz"
        and model.helm.embedding == "lorentz"
        and model.helm.embedding_optimizer == "riemannian"
    )


def is_points(parameter: Parameter, name: str) -> bool:
    """Whether a parameter of such a model is that table."""
    return name.endswith(_EMBEDDING)


def _multiplied(lr: float | None, min_lr: float | None, factor: float) -> dict[str, float]:
    if factor == 1.0:
        return {}
    return {n: r * factor for n, r in (("max_lr", lr), ("min_lr", min_lr)) if r is not None}


def _named(name: str, rule: Any) -> ParamKey:
    return ParamKey(with_name_predicate=ParamWithNamePredicate(name=name, fn=rule))


def _is_curvature(parameter: Parameter, name: str) -> bool:
    return name.endswith(_CURVATURE)


def _without_time(key: ParamKey, override: dict[str, Any]) -> ParamKey:
    if override != {"wd_mult": 0.0}:
        return key
    return _named("no_decay", lambda p, n: key.matches(p, n) and not n.endswith("time_weight"))


def _has_no_decay(model: HelmTransformerConfig) -> Any:
    """The released rule: biases and learned scales; HELM-MiCE's norms, HELM-D's temperatures."""
    mice = model.multi_latent_attention
    ends = (".bias", "log_scale", _CURVATURE, "norm.weight" if mice else "temperature")
    return lambda parameter, name: name.endswith(ends)
