"""The settings of a model on both sides: Megatron's config and flags, Hugging Face's config."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from megatron.training.argument_utils import gpt_config_from_args

from helm_megatron.arguments import ONE_STAGE, config_from_args
from helm_megatron.builder import HelmModelConfig
from helm_megatron.errors import HelmError
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.specs import moe_pattern
from helm_megatron.transformer_config import HelmTransformerConfig

# What a conversion sets of a checkpoint's arguments: one process, Megatron's own modules.
_ONE_PROCESS: dict[str, Any] = {
    "tensor_model_parallel_size": 1,
    **ONE_STAGE,
    "context_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": 1,
    "sequence_parallel": False,
    "tp_comm_overlap": False,
    "transformer_impl": "local",
    "use_cpu_initialization": True,
    "perform_initialization": False,
    "bias_swiglu_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "masked_softmax_fusion": False,
    "gradient_accumulation_fusion": False,
    "moe_permute_fusion": False,
    "moe_router_fusion": False,
    "fp8": None,
    "world_size": 1,
    "rank": 0,
}


class SettingsError(HelmError):
    """A model that the Hugging Face side cannot express; the message is one line."""


def one_process_model_config(saved: argparse.Namespace) -> HelmModelConfig:
    """Megatron's model config of a checkpoint's arguments, for one process without dropout."""
    args = argparse.Namespace(**vars(saved) | _ONE_PROCESS)
    args.hidden_dropout = args.attention_dropout = 0.0
    return gpt_config_from_args(args, config_from_args(args), HelmModelConfig)


def in_fp32(saved: argparse.Namespace) -> argparse.Namespace:
    """The arguments of the same model with fp32 parameters."""
    fp32 = {"params_dtype": torch.float32, "bf16": False, "fp16": False}
    return argparse.Namespace(**vars(saved) | fp32)


def hf_config(model: HelmModelConfig, vocab_size: int, **others: Any) -> HelmConfig:
    """The Hugging Face config of a Megatron model config.

    `vocab_size` is the true one, without padding; `others` are further fields (token ids).

    Raises:
        SettingsError: the model has something that the Hugging Face model has not, or cannot be.
    """
    config = model.transformer
    _check(config)
    helm = config.helm
    fields: dict[str, Any] = dict(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        max_position_embeddings=model.seq_length,
        initializer_range=config.init_method_std,
        rms_norm_eps=config.layernorm_epsilon,
        tie_word_embeddings=model.share_embeddings_and_output_weights,
        rope_parameters=_rope(model),
        geometry=helm.geometry,
        **(_latent(config) if config.multi_latent_attention else _heads(config)),
        **(_experts(config) if config.num_moe_experts is not None else {}),
    )
    if helm.geometry == "lorentz":
        fields |= {name: getattr(helm, name) for name in _LORENTZ}
        if helm.layer_curvature is not None:
            layers = range(config.num_layers)
            within = [helm.curvature_within_layer(i, config.num_layers) for i in layers]
            fields["layer_curvatures"] = within
    try:
        return HelmConfig(**fields | others, dtype=config.params_dtype)
    except Exception as error:  # transformers' checks raise errors of several kinds
        raise SettingsError(f"no such model can be: {' '.join(str(error).split())}") from error


_LORENTZ = (
    "curvature embedding_curvature output_curvature linear_bias residual_scale "
    "learn_residual_scale embedding mice_combine mice_routing"
).split()


def _check(config: HelmTransformerConfig) -> None:
    def refuse(what: str) -> None:
        raise SettingsError(f"the checkpoint's model has {what}, which has no Hugging Face form")

    if config.moe_expert_capacity_factor is not None:
        refuse("--moe-expert-capacity-factor")
    if config.multi_latent_attention and config.rotary_interleaved:
        refuse("--rotary-interleaved with --multi-latent-attention")
    if config.num_moe_experts and config.moe_router_score_function not in ("softmax", "sigmoid"):
        refuse(f"--moe-router-score-function {config.moe_router_score_function}")


def _heads(config: HelmTransformerConfig) -> dict[str, Any]:
    return dict(
        num_key_value_heads=config.num_query_groups,
        head_dim=config.kv_channels,
        qk_norm=config.qk_layernorm,
        rope_interleaved=config.rotary_interleaved,
    )


def _latent(config: Any) -> dict[str, Any]:
    key_width = config.qk_head_dim + config.qk_pos_emb_head_dim
    factor = _mscale(config.rotary_scaling_factor, config.mscale_all_dim)
    return dict(
        q_lora_rank=config.q_lora_rank,
        kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.qk_head_dim,
        qk_rope_head_dim=config.qk_pos_emb_head_dim,
        v_head_dim=config.v_head_dim,
        softmax_scale=None if factor == 1 else factor**2 / math.sqrt(key_width),
        # Megatron's latent attention always rotates interleaved pairs.
        rope_interleaved=True,
    )


def _experts(config: HelmTransformerConfig) -> dict[str, Any]:
    reference = config.helm.geometry == "lorentz" and config.helm.mice_routing == "reference"
    return dict(
        n_routed_experts=config.num_moe_experts,
        num_experts_per_tok=config.moe_router_topk,
        moe_layers=[int(is_moe) for is_moe in moe_pattern(config)],
        moe_intermediate_size=config.moe_ffn_hidden_size,
        shared_expert_intermediate_size=config.moe_shared_expert_intermediate_size,
        scoring_func=config.moe_router_score_function,
        softmax_before_choice=config.moe_router_pre_softmax,
        n_group=config.moe_router_num_groups,
        topk_group=config.moe_router_group_topk,
        routed_scaling_factor=config.moe_router_topk_scaling_factor,
        router_bias=config.moe_router_enable_expert_bias or reference,
    )


def _rope(model: HelmModelConfig) -> dict[str, Any]:
    config: Any = model.transformer
    if config.multi_latent_attention:
        if config.rope_type == "yarn":
            return _yarn(config)
        base, percent = config.rotary_base, config.rotary_percent
    else:
        base, percent = model.rotary_base, model.rotary_percent
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(base)}
    if percent != 1.0:
        rope["partial_rotary_factor"] = percent
    if config.multi_latent_attention:
        return rope
    if model.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": model.rope_scaling_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    elif model.seq_len_interpolation_factor is not None:
        rope |= {"rope_type": "linear", "factor": model.seq_len_interpolation_factor}
    return rope


def _yarn(config: Any) -> dict[str, Any]:
    factor = config.rotary_scaling_factor
    return {
        "rope_type": "yarn",
        "rope_theta": float(config.rotary_base),
        "factor": float(factor),
        "original_max_position_embeddings": config.original_max_position_embeddings,
        "beta_fast": float(config.beta_fast),
        "beta_slow": float(config.beta_slow),
        "mscale": config.mscale,
        "mscale_all_dim": config.mscale_all_dim,
        "attention_factor": _mscale(factor, config.mscale) / _mscale(factor, config.mscale_all_dim),
    }


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
