"""Megatron's config for a checkpoint of the authors' release.

Every width there counts the time coordinate (`kv_lora_rank` and `qk_nope_head_dim` excepted), so
ours are one less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helm_megatron.config import CURVATURES, HelmSettings
from helm_megatron.conversion.release import arguments
from helm_megatron.transformer_config import HelmMLATransformerConfig, HelmTransformerConfig


def config_from_release(
    released: Mapping[str, Any],
    state: Mapping[str, Tensor],
    params_dtype: torch.dtype = torch.float32,
) -> HelmTransformerConfig:
    """The config of the model that the released arguments and tensors describe.

    `released` holds the constructor arguments there: `arch` for HELM-D, else those of HELM-MiCE.
    What the tensors tell (curvatures, the kind of embedding, learned residual scales) is read from
    `state`. Raises ValueError where arguments or tensors are not those of a released model.
    """
    dense = is_dense(state)
    found = arguments.checked(released, dense)
    make = _dense if dense else _mice
    helm = _helm(found, state, dense)
    return make(found, _common(params_dtype) | {"helm": helm})


def is_dense(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are of a HELM-D, else of a HELM-MiCE."""
    return any(name.startswith("resblocks.") for name in state)


def _common(dtype: torch.dtype) -> dict[str, Any]:
    return dict(
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        layernorm_epsilon=1e-8,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        transformer_impl="local",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
    )


def _helm(released: Mapping[str, Any], state: Mapping[str, Tensor], dense: bool) -> HelmSettings:
    hidden = _curvature(state, "manifold_hidden.k")
    return HelmSettings(
        curvature=hidden,
        embedding_curvature=_curvature(state, "manifold_in.k"),
        # HELM-D takes its logits at the hidden curvature; its `manifold_out` is not used.
        output_curvature=hidden if dense else _curvature(state, "manifold_out.k"),
        residual_scale=4.0 if dense else 1.0,
        learn_residual_scale=any(n.endswith((".res1.scale", ".attn_res.scale")) for n in state),
        embedding="lorentz" if any(n.endswith("embed.embedding") for n in state) else "euclidean",
        mice_combine="reference",
        mice_routing="reference",
        mice_bias_update="proportional",
        mice_learn_curvature=bool(released.get("train_curv", True)),
    )


def _dense(released: Mapping[str, Any], common: dict[str, Any]) -> HelmTransformerConfig:
    layers, width, heads = arguments.arch(released["arch"])
    return HelmTransformerConfig(
        num_layers=layers,
        hidden_size=width - 1,
        ffn_hidden_size=4 * width - 1,
        num_attention_heads=heads,
        kv_channels=width // heads - 1,
        rotary_interleaved=True,
        **common,
    )


def _mice(released: Mapping[str, Any], common: dict[str, Any]) -> HelmTransformerConfig:
    dense_layers, layers = released["n_dense_layers"], released["n_layers"]
    sigmoid = released["score_func"] == "sigmoid"
    grouped = released["n_expert_groups"] > 1
    return HelmMLATransformerConfig(
        num_layers=layers,
        hidden_size=released["dim"] - 1,
        ffn_hidden_size=released["inter_dim"] - 1,
        num_attention_heads=released["n_heads"],
        # Of no latent attention; Megatron's own value is a quotient that need not be whole.
        kv_channels=released["qk_nope_head_dim"] + released["qk_rope_head_dim"] - 1,
        q_lora_rank=None,
        kv_lora_rank=released["kv_lora_rank"],
        qk_head_dim=released["qk_nope_head_dim"],
        qk_pos_emb_head_dim=released["qk_rope_head_dim"] - 1,
        v_head_dim=released["v_head_dim"] - 1,
        rope_type="rope",
        rotary_base=released["rope_theta"],
        num_moe_experts=released["n_routed_experts"],
        moe_layer_freq=[0] * dense_layers + [1] * (layers - dense_layers),
        moe_ffn_hidden_size=released["mice_inter_dim"] - 1,
        moe_shared_expert_intermediate_size=released["mice_inter_dim"] - 1,
        moe_router_topk=released["n_activated_experts"],
        moe_router_score_function=released["score_func"],
        moe_router_pre_softmax=not sigmoid,
        moe_router_num_groups=released["n_expert_groups"] if grouped else None,
        moe_router_group_topk=released["n_limited_groups"] if grouped else None,
        moe_router_topk_scaling_factor=released["route_scale"],
        moe_router_dtype="fp64" if common["params_dtype"] == torch.float64 else "fp32",
        # Megatron has the bias for sigmoid scores only.
        moe_router_enable_expert_bias=sigmoid,
        moe_router_bias_update_rate=released["bias_update_speed"],
        moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=released["seq_bal_alpha"],
        moe_token_dispatcher_type="alltoall",
        **common,
    )


def _curvature(state: Mapping[str, Tensor], name: str) -> float:
    if name not in state:
        raise ValueError(f"{name} is missing: not the state dict of a released HELM model")
    c, (low, high) = float(state[name]), CURVATURES
    if not low <= c <= high:
        raise ValueError(f"{name} is {c:g}: curvatures are from {low:g} to {high:g} here")
    return c
