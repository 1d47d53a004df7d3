"""Layer specs: which leaves stand in Megatron's slots, by geometry and by backend.

A backend gives the linears, the norm and the attention kernel; a geometry wraps them. Everything
else of a layer is Megatron's own and the same for both geometries.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from helm_megatron.layers.attention import lorentz_attention
from helm_megatron.layers.curved_layer import CurvedLayer, with_curvature
from helm_megatron.layers.dot_product import DotProductAttention
from helm_megatron.layers.head import FinalProjectionNorm
from helm_megatron.layers.latent_attention import LatentAttentionSubmodules, LatentSelfAttention
from helm_megatron.layers.linear import (
    ReplicatedLinear,
    lorentz_column,
    lorentz_heads,
    lorentz_replicated,
    lorentz_row,
)
from helm_megatron.layers.mlp import LorentzMLP, LorentzSharedExpert
from helm_megatron.layers.norm import RMSNorm
from helm_megatron.layers.residual import LorentzResidual, can_join
from helm_megatron.layers.self_attention import LorentzSelfAttention
from helm_megatron.moe.experts import GroupedMiceExperts, MiceExperts
from helm_megatron.moe.layer import MiceLayer
from helm_megatron.moe.router import MiceRouter
from helm_megatron.transformer_config import HelmTransformerConfig


@dataclass(frozen=True)
class Backend:
    """The modules that do the heavy work, from Megatron or from Transformer Engine."""

    column: Any = ColumnParallelLinear
    row: Any = RowParallelLinear
    replicated: Any = ReplicatedLinear
    norm: Any = RMSNorm
    core_attention: Any = DotProductAttention
    # Megatron's grouped experts, which need Transformer Engine.
    grouped_experts: Any = None


@dataclass(frozen=True)
class Leaves:
    """What stands in the slots of a layer."""

    column: Any
    row: Any
    replicated: Any
    norm: Any
    self_attention: Any
    core_attention: Any
    # The linear after attention; Lorentz heads carry their times into it.
    linear_proj: Any
    residual: Any
    # That after attention, which the norm before the feed-forward may finish.
    residual_before_norm: Any
    mlp: Any
    experts: Any
    shared_experts: Any
    router: Any
    moe_layer: Any
    final_norm: Any


def backend_of(config: HelmTransformerConfig) -> Backend:
    """The backend that `--transformer-impl` names."""
    if config.transformer_impl == "local":
        return Backend()
    from megatron.core.extensions.transformer_engine import TELinear
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

    te = TESpecProvider()
    return Backend(
        column=te.column_parallel_linear(),
        row=te.row_parallel_linear(),
        replicated=_duplicated(TELinear),
        norm=te.layer_norm(rms_norm=True),
        core_attention=te.core_attention(),
        grouped_experts=te.grouped_mlp_modules(True),
    )


def lorentz_leaves(backend: Backend, config: HelmTransformerConfig) -> Leaves:
    """The hyperbolic leaves around a backend's modules."""
    column, row = lorentz_column(backend.column), lorentz_row(backend.row)
    replicated = lorentz_replicated(backend.replicated)
    joined = backend.norm is RMSNorm and can_join(config)
    linears = MLPSubmodules(linear_fc1=column, linear_fc2=row)
    return Leaves(
        column=column,
        row=row,
        replicated=replicated,
        norm=backend.norm,
        self_attention=LorentzSelfAttention,
        core_attention=lorentz_attention(backend.core_attention),
        linear_proj=lorentz_heads(backend.row),
        residual=ModuleSpec(module=LorentzResidual, params={"config": config}),
        residual_before_norm=ModuleSpec(
            module=LorentzResidual, params={"config": config, "joined": joined}
        ),
        mlp=functools.partial(LorentzMLP.as_mlp_submodule, submodules=linears),
        experts=functools.partial(
            GroupedMiceExperts if config.moe_grouped_gemm else MiceExperts, submodules=linears
        ),
        shared_experts=functools.partial(LorentzSharedExpert, submodules=linears),
        router=MiceRouter,
        moe_layer=MiceLayer,
        final_norm=functools.partial(FinalProjectionNorm, linear=replicated, norm=backend.norm),
    )


def euclidean_leaves(backend: Backend, config: HelmTransformerConfig) -> Leaves:
    """Megatron's own leaves: the Euclidean twin of the same flags."""
    linears = MLPSubmodules(linear_fc1=backend.column, linear_fc2=backend.row)
    experts = functools.partial(SequentialMLP, submodules=linears)
    if config.moe_grouped_gemm and backend.grouped_experts is not None:
        experts = backend.grouped_experts
    return Leaves(
        column=backend.column,
        row=backend.row,
        replicated=backend.replicated,
        norm=backend.norm,
        self_attention=SelfAttention,
        core_attention=backend.core_attention,
        linear_proj=backend.row,
        residual=get_bias_dropout_add,
        residual_before_norm=get_bias_dropout_add,
        mlp=functools.partial(MLP.as_mlp_submodule, submodules=linears),
        experts=experts,
        shared_experts=functools.partial(SharedExpertMLP, submodules=linears),
        router=TopKRouter,
        moe_layer=MoELayer,
        final_norm=backend.norm,
    )


def leaves_of(config: HelmTransformerConfig) -> Leaves:
    """The leaves of the config's geometry around its backend."""
    make = lorentz_leaves if config.helm.geometry == "lorentz" else euclidean_leaves
    return make(backend_of(config), config)


def block_spec(
    config: HelmTransformerConfig, vp_stage: int | None = None, pp_rank: int | None = None
) -> TransformerBlockSubmodules:
    """Specs of the layers of this pipeline stage, dense or MoE by `moe_layer_freq`."""
    pattern = moe_pattern(config)
    return TransformerBlockSubmodules(
        layer_specs=[
            _numbered_layer_spec(config, i, pattern[i])
            for i in _layers_of_stage(config, vp_stage, pp_rank)
        ],
        layer_norm=leaves_of(config).final_norm,
    )


def _numbered_layer_spec(config: HelmTransformerConfig, index: int, moe: bool) -> ModuleSpec:
    helm = config.helm
    if helm.geometry != "lorentz" or helm.layer_curvature is None:
        return layer_spec(config, leaves_of(config), moe)
    c = helm.curvature_within_layer(index, config.num_layers)
    inner = with_curvature(config, c)
    submodules = layer_spec(inner, leaves_of(inner), moe).submodules
    return ModuleSpec(module=CurvedLayer, params={"curvature": c}, submodules=submodules)


def layer_spec(config: HelmTransformerConfig, leaves: Leaves, moe: bool) -> ModuleSpec:
    """One transformer layer: attention or latent attention, then a dense or a MoE feed-forward."""
    attention = _latent_attention(leaves)
    if not config.multi_latent_attention:
        attention = _attention(leaves, config.qk_layernorm)
    submodules = TransformerLayerSubmodules(
        input_layernorm=leaves.norm,
        self_attention=attention,
        self_attn_bda=leaves.residual_before_norm,
        pre_mlp_layernorm=leaves.norm,
        mlp=_moe(leaves) if moe else leaves.mlp,
        mlp_bda=leaves.residual,
    )
    return ModuleSpec(module=TransformerLayer, submodules=submodules)


def moe_pattern(config: HelmTransformerConfig) -> list[bool]:
    """Which layers are MoE: Megatron's `moe_layer_freq`, every n-th from the first or a list."""
    if config.num_moe_experts is None:
        return [False] * config.num_layers
    freq = config.moe_layer_freq
    if isinstance(freq, int):
        return [i % freq == 0 for i in range(config.num_layers)]
    return [bool(is_moe) for is_moe in freq]


def _attention(leaves: Leaves, qk_layernorm: bool) -> ModuleSpec:
    return ModuleSpec(
        module=leaves.self_attention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=leaves.column,
            core_attention=leaves.core_attention,
            linear_proj=leaves.linear_proj,
            # Norms of the space coordinates, before their times are taken.
            q_layernorm=leaves.norm if qk_layernorm else None,
            k_layernorm=leaves.norm if qk_layernorm else None,
        ),
    )


def _latent_attention(leaves: Leaves) -> ModuleSpec:
    return ModuleSpec(
        module=LatentSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=LatentAttentionSubmodules(
            down=leaves.replicated,
            up=leaves.column,
            norm=leaves.norm,
            core_attention=leaves.core_attention,
            linear_proj=leaves.linear_proj,
        ),
    )


def _moe(leaves: Leaves) -> Any:
    submodules = MoESubmodules(
        experts=leaves.experts, shared_experts=leaves.shared_experts, router=leaves.router
    )
    return functools.partial(leaves.moe_layer, submodules=submodules)


def _layers_of_stage(
    config: HelmTransformerConfig, vp_stage: int | None, pp_rank: int | None
) -> list[int]:
    """Indices of the layers that this pipeline stage builds."""
    layout = config.pipeline_model_parallel_layout
    if layout is not None:
        from megatron.core.transformer.enums import LayerType

        return layout.get_layer_id_list(
            layer_type=LayerType.decoder, vp_stage=vp_stage, pp_rank=pp_rank
        )
    first = get_transformer_layer_offset(config, vp_stage=vp_stage, pp_rank=pp_rank)
    return list(range(first, first + get_num_layers_to_build(config, vp_stage, pp_rank)))


@functools.cache
def _duplicated(te_linear: type) -> type:
    """Transformer Engine's linear, whole on every rank."""

    class DuplicatedLinear(te_linear):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, parallel_mode="duplicated", **kwargs)

    return DuplicatedLinear
