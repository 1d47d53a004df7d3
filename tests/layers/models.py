"""Small configs and models of both geometries for the tests of the leaves."""

import torch
import torch.nn.functional as F

from helm_megatron.config import HelmSettings
from helm_megatron.model import build_model
from helm_megatron.transformer_config import HelmMLATransformerConfig, HelmTransformerConfig

COMMON = dict(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=4,
    add_bias_linear=False,
    gated_linear_unit=True,
    activation_func=F.silu,
    normalization="RMSNorm",
    transformer_impl="local",
    attention_dropout=0.0,
    hidden_dropout=0.0,
    bias_activation_fusion=False,
    bias_dropout_fusion=False,
)
LATENT = dict(
    q_lora_rank=32,
    kv_lora_rank=24,
    qk_head_dim=16,
    qk_pos_emb_head_dim=8,
    v_head_dim=16,
    rope_type="rope",
)
MOE = dict(
    num_moe_experts=4,
    moe_router_topk=2,
    moe_ffn_hidden_size=48,
    moe_shared_expert_intermediate_size=48,
    moe_layer_freq=[0, 1],
    moe_token_dispatcher_type="alltoall",
    moe_router_load_balancing_type="none",
)


def dense(dtype=torch.float32, helm=None, **overrides):
    """Config of HELM-D with grouped queries."""
    settings = COMMON | dict(num_query_groups=2, params_dtype=dtype, pipeline_dtype=dtype)
    return HelmTransformerConfig(**settings | overrides, helm=HelmSettings(**helm or {}))


def mice(dtype=torch.float32, helm=None, **overrides):
    """Config of HELM-MiCE: latent attention, a dense layer and a MoE layer."""
    settings = COMMON | LATENT | MOE | dict(params_dtype=dtype, pipeline_dtype=dtype)
    helm = dict(mice_curvature_init=(0.3, 2.0)) | (helm or {})
    return HelmMLATransformerConfig(**settings | overrides, helm=HelmSettings(**helm))


def model(config, vocab_size=96, sequence=32, **arguments):
    """The language model of a config, with rotary positions."""
    return build_model(config, vocab_size, sequence, position_embedding_type="rope", **arguments)


def perturb(module, seed=0, size=0.1):
    """Move every parameter from its trivial start (zero time weights, unit norms)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter.dtype))
    return module


def part_of(config, name):
    """A part of the last transformer layer of a config's model."""
    return model(config).decoder.layers[-1].get_submodule(name)
