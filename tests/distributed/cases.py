"""The models and the layouts that the distributed tests combine; imports no Megatron."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

VOCABULARY = 32
SEQUENCE = 16
MICRO_BATCH = 2
# Four microbatches at data-parallel size 1, one at 4: Megatron's balance loss is of a microbatch.
GLOBAL_BATCH = 8


@dataclass(frozen=True)
class Model:
    """A tiny model: fields of Megatron's config, of `HelmSettings`, and arguments of GPTModel."""

    name: str
    config: dict[str, Any]
    helm: dict[str, Any]
    latent: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    # Take torch's cross entropy of gathered logits: Megatron's vocabulary-parallel one is fp32.
    own_loss: bool = False
    # Megatron's optimizers clip fp32 gradients only.
    training_steps: int = 3


@dataclass(frozen=True)
class Layout:
    """How many processes, and how the model is spread over them."""

    name: str
    world: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual: int | None = None
    expert: int = 1
    # Tensor parallelism within experts; Megatron's default is that of the rest.
    expert_tensor: int | None = None
    sequence: bool = False
    context: int = 1
    distributed_optimizer: bool = False
    # Of gradient reduction with the backward pass, of parameter gathering with the forward pass.
    overlap: bool = False
    dispatcher: str = "alltoall"
    # Megatron's notation of an uneven split: E embedding, t layer, L loss, | between stages.
    pipeline_layout: str | None = None
    recompute: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> int:
        """The data-parallel size."""
        return self.world // (self.tensor * self.pipeline * self.context)


BASE = {
    "num_layers": 2,
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_attention_heads": 4,
    "add_bias_linear": False,
    "gated_linear_unit": True,
    "normalization": "RMSNorm",
    "transformer_impl": "local",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "init_method_std": 0.3,
}
LATENT = {
    **BASE,
    "kv_lora_rank": 12,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 6,
    "rope_type": "rope",
}
MOE = {
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 8,
    "moe_shared_expert_intermediate_size": 8,
    "moe_layer_freq": [0, 1],
    "moe_aux_loss_coeff": 1e-2,
    "moe_router_load_balancing_type": "aux_loss",
}
SIGMOID = {
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_load_balancing_type": "seq_aux_loss",
}
# No curvature is 1, and none equals another.
CURVED = {"curvature": 1.3, "output_curvature": 0.8}
SPREAD = {**CURVED, "mice_curvature_init": (0.5, 2.0)}

HELM_D = Model(
    "helm-d",
    {**BASE, "num_query_groups": 2},
    {
        **CURVED,
        "embedding": "lorentz",
        "embedding_curvature": 0.6,
        "residual_scale": 4.0,
        "learn_residual_scale": True,
    },
)
HELM_D_TWIN = Model("helm-d-twin", HELM_D.config, {"geometry": "euclidean"})
HELM_D_MHA = Model("helm-d-mha", BASE, {**CURVED, "embedding_curvature": 0.6})
HELM_D_DEEP = Model("helm-d-deep", {**BASE, "num_layers": 4}, CURVED)
HELM_D_TIED = Model(
    "helm-d-tied",
    {**BASE, "num_query_groups": 2},
    {**CURVED, "linear_bias": False},
    arguments={"share_embeddings_and_output_weights": True},
)
HMLA_DENSE = Model("hmla-dense", {**LATENT, "q_lora_rank": 10}, CURVED, latent=True)
MICE = Model("mice", {**LATENT, **MOE, "q_lora_rank": None}, SPREAD, latent=True)
MICE_Q_LORA = Model(
    "mice-q-lora",
    {**LATENT, **MOE, **SIGMOID, "q_lora_rank": 10},
    SPREAD,
    latent=True,
)
HELM_D_LONG = replace(HELM_D, name="helm-d-20-steps", training_steps=20)
MICE_LONG = replace(MICE_Q_LORA, name="mice-20-steps", training_steps=20)
MICE_DEEP = Model(
    "mice-deep",
    {**LATENT, **MOE, "q_lora_rank": 10, "num_layers": 4, "moe_layer_freq": [0, 1, 1, 1]},
    SPREAD,
    latent=True,
)
# Group-limited routing of a shared expert of double width; no latent attention, grouped queries.
MICE_GQA = Model(
    "mice-gqa",
    {
        **BASE,
        **MOE,
        **SIGMOID,
        "num_query_groups": 2,
        "moe_router_num_groups": 2,
        "moe_router_group_topk": 1,
        "moe_router_topk_scaling_factor": 1.5,
        "moe_shared_expert_intermediate_size": 16,
    },
    {**SPREAD, "embedding": "lorentz"},
)
# Each layer has a curvature of its own.
MICE_LAYERS = Model(
    "mice-layer-curvatures", MICE.config, {**SPREAD, "layer_curvature": (0.6, 1.9)}, latent=True
)
MICE_TOP1 = Model(
    "mice-top1-unshared",
    {
        **LATENT,
        **MOE,
        "q_lora_rank": None,
        "moe_router_topk": 1,
        # A softmax over one chosen expert would be 1, without a gradient.
        "moe_router_pre_softmax": True,
        "moe_shared_expert_intermediate_size": None,
    },
    {**SPREAD, "mice_learn_curvature": False},
    latent=True,
)
MICE_TOP3 = Model(
    "mice-top3", {**LATENT, **MOE, "q_lora_rank": 10, "moe_router_topk": 3}, SPREAD, latent=True
)
MICE_REFERENCE = Model(
    "mice-reference",
    {**LATENT, **MOE, **SIGMOID, "q_lora_rank": 10},
    {
        **SPREAD,
        "mice_combine": "reference",
        "mice_routing": "reference",
        "mice_bias_update": "proportional",
        "mice_learn_curvature": False,
    },
    latent=True,
)
# Megatron's own routing takes softmax and sigmoid in fp32, the released rule in the logits' type.
_FP64 = {"dtype": "float64", "own_loss": True, "training_steps": 0}
# Points in rows that the distributed optimizer's shards cut: they end at multiples of 64.
HELM_D_POINTS = Model(
    "helm-d-points",
    {**BASE, "hidden_size": 20, "kv_channels": 4},
    {**CURVED, "embedding": "lorentz", "embedding_curvature": 0.6, "embedding_lr_mult": 2.0},
    training_steps=8,
)
HELM_D_FP64 = Model("helm-d-fp64", HELM_D.config, HELM_D.helm, **_FP64)
MICE_FP64 = Model(
    "mice-fp64",
    {**MICE_Q_LORA.config, "moe_router_dtype": "fp64"},
    {**SPREAD, "mice_routing": "reference"},
    latent=True,
    **_FP64,
)

ONE = Layout("one-process")
TP2 = Layout("tp2", 2, tensor=2)
TP2_SP = Layout("tp2-sp", 2, tensor=2, sequence=True)
PP2 = Layout("pp2", 2, pipeline=2)
PP2_VPP2 = Layout("pp2-vpp2", 2, pipeline=2, virtual=2)
PP2_UNEVEN = Layout("pp2-uneven", 2, pipeline=2, pipeline_layout="Et|tttL")
PP4 = Layout("pp4", 4, pipeline=4)
TP4_SP = Layout("tp4-sp", 4, tensor=4, sequence=True)
DP2 = Layout("dp2", 2)
DP2_OPTIMIZER = Layout("dp2-distributed-optimizer", 2, distributed_optimizer=True)
DP4_OPTIMIZER = Layout("dp4-distributed-optimizer", 4, distributed_optimizer=True)
TP2_DP2_OPTIMIZER = Layout("tp2-dp2-distributed-optimizer", 4, tensor=2, distributed_optimizer=True)
TP4 = Layout("tp4", 4, tensor=4)
DP2_OVERLAP = Layout(
    "dp2-distributed-optimizer-overlap", 2, distributed_optimizer=True, overlap=True
)
EP2 = Layout("ep2", 2, expert=2)
EP2_OPTIMIZER = Layout("ep2-distributed-optimizer", 2, expert=2, distributed_optimizer=True)
EP2_ALLGATHER = Layout("ep2-allgather", 2, expert=2, dispatcher="allgather")
EP4 = Layout("ep4", 4, expert=4)
# Tensor parallelism with experts: within each of them (the default), or by whole experts.
TP2_ALLGATHER = Layout("tp2-sp-allgather", 2, tensor=2, sequence=True, dispatcher="allgather")
TP2_ETP1 = Layout("tp2-sp-etp1", 2, tensor=2, sequence=True, expert_tensor=1)
TP2_ETP1_EP2 = Layout("tp2-sp-etp1-ep2", 2, tensor=2, sequence=True, expert_tensor=1, expert=2)
TP2_EP2 = Layout("tp2-sp-ep2", 4, tensor=2, sequence=True, expert=2)
TP2_EP2_ALLGATHER = Layout(
    "tp2-sp-ep2-allgather", 4, tensor=2, sequence=True, expert=2, dispatcher="allgather"
)
TP2_PP2 = Layout("tp2-sp-pp2", 4, tensor=2, pipeline=2, sequence=True)
CP2 = Layout("cp2", 2, context=2)
CP4 = Layout("cp4", 4, context=4)
CP2_TP2 = Layout("cp2-tp2-sp", 4, context=2, tensor=2, sequence=True)
CP2_EP2 = Layout("cp2-ep2", 2, context=2, expert=2)
CP2_DP2_EP2 = Layout("cp2-dp2-ep2", 4, context=2, expert=2, distributed_optimizer=True)
CP2_PP2 = Layout("cp2-pp2", 4, context=2, pipeline=2)
PP2_EP2 = Layout("pp2-ep2", 4, pipeline=2, expert=2)
RECOMPUTE = Layout(
    "recompute-layers",
    recompute={
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
)
RECOMPUTE_PARTS = Layout(
    "recompute-parts",
    recompute={
        "recompute_granularity": "selective",
        # What Megatron can recompute without Transformer Engine.
        "recompute_modules": ["core_attn", "mlp", "moe", "shared_experts"],
    },
)
# Recomputed layers must reduce every gradient once, and whole.
DP2_OVERLAP_RECOMPUTE = replace(
    DP2_OVERLAP, name="dp2-overlap-recompute-layers", recompute=RECOMPUTE.recompute
)

CASES = [
    *((HELM_D_LONG, layout) for layout in (TP2_PP2, DP2_OPTIMIZER)),
    *((MICE_LONG, layout) for layout in (TP2_EP2, EP2_OPTIMIZER)),
    *((HELM_D, layout) for layout in (TP2, TP2_SP, PP2, DP2_OPTIMIZER, TP2_PP2, RECOMPUTE)),
    (HELM_D, DP2_OVERLAP_RECOMPUTE),
    *((HELM_D_TIED, layout) for layout in (TP2_SP, PP2)),
    *((HMLA_DENSE, layout) for layout in (TP2, TP2_SP)),
    *((MICE, layout) for layout in (TP2_SP, DP2, EP2, EP2_ALLGATHER, TP2_ALLGATHER)),
    (MICE, TP2_ETP1_EP2),
    *((MICE_Q_LORA, layout) for layout in (TP2_SP, PP2, EP2, TP2_EP2, EP2_OPTIMIZER, TP2_ETP1)),
    *((MICE_Q_LORA, layout) for layout in (RECOMPUTE, RECOMPUTE_PARTS)),
    *((HELM_D, layout) for layout in (CP2, CP2_TP2, CP2_PP2, CP4)),
    (HELM_D_TWIN, CP2),
    *((MICE, layout) for layout in (CP2, CP2_TP2, CP2_EP2)),
    *((MICE_Q_LORA, layout) for layout in (CP2_DP2_EP2, CP4)),
    (MICE_DEEP, PP2_VPP2),
    *((MICE_REFERENCE, layout) for layout in (TP2_SP, PP2, EP2, DP2_OVERLAP)),
    *((HELM_D_MHA, layout) for layout in (TP2, TP4_SP, PP2, DP2_OVERLAP)),
    *((HELM_D_DEEP, layout) for layout in (PP4, PP2_VPP2, PP2_UNEVEN)),
    *((HMLA_DENSE, layout) for layout in (PP2, DP2_OVERLAP)),
    *((MICE_GQA, layout) for layout in (TP2_SP, PP2, EP2, DP2_OVERLAP, TP2_EP2)),
    *((MICE_TOP1, layout) for layout in (TP2_ETP1_EP2, EP4, PP2, DP2)),
    *((MICE_TOP3, layout) for layout in (TP4_SP, EP2_ALLGATHER, PP2_EP2, DP2_OVERLAP)),
    (MICE_DEEP, PP4),
    (MICE_LAYERS, PP2),
    (MICE, PP2),
    *((model, CP2) for model in (HELM_D_MHA, HMLA_DENSE, MICE_REFERENCE, MICE_GQA)),
]
FP64_CASES = [
    *((HELM_D_FP64, layout) for layout in (TP2, TP2_SP, PP2, DP2_OPTIMIZER)),
    *((MICE_FP64, layout) for layout in (TP2_SP, EP2, EP2_ALLGATHER, TP2_ETP1_EP2, TP2_EP2)),
    (MICE_FP64, TP2_EP2_ALLGATHER),
    *((model, layout) for model in (HELM_D_FP64, MICE_FP64) for layout in (CP2, CP2_TP2, CP4)),
    (MICE_FP64, CP2_EP2),
]
SAVED_CASES = [(HELM_D, TP2_PP2), (MICE_Q_LORA, TP2_EP2)]

MODELS = [
    *(HELM_D, HELM_D_TWIN, HELM_D_MHA, HELM_D_TIED, HMLA_DENSE),
    *(MICE, MICE_Q_LORA, MICE_GQA, MICE_TOP1, MICE_TOP3, MICE_REFERENCE),
]
LAYOUTS = [
    *(TP2, TP2_SP, TP4_SP, PP2, PP4, PP2_VPP2, PP2_UNEVEN, TP2_PP2),
    *(DP2, DP2_OPTIMIZER, DP2_OVERLAP, DP2_OVERLAP_RECOMPUTE, RECOMPUTE, RECOMPUTE_PARTS),
    *(EP2, EP4, EP2_ALLGATHER, EP2_OPTIMIZER, TP2_ALLGATHER, TP2_ETP1, TP2_ETP1_EP2),
    *(TP2_EP2, TP2_EP2_ALLGATHER, PP2_EP2),
    *(CP2, CP4, CP2_TP2, CP2_PP2, CP2_EP2, CP2_DP2_EP2),
]


def has_experts(model: Model) -> bool:
    return "num_moe_experts" in model.config


def fits(model: Model, layout: Layout) -> bool:
    """Whether the layout can hold the model and differs for it from another layout."""
    groups = model.config.get("num_query_groups", model.config["num_attention_heads"])
    if groups % layout.tensor:
        return False
    if has_experts(model):
        reference = model.helm.get("mice_combine") == "reference"
        return (layout.tensor == 1 or layout.sequence) and not (
            reference and layout.dispatcher == "allgather"
        )
    of_experts = layout.expert > 1 or layout.expert_tensor or layout.dispatcher == "allgather"
    return not of_experts and layout is not RECOMPUTE_PARTS


def deep_enough(model: Model, layout: Layout) -> Model:
    """The model, with four layers if the pipeline has more chunks than it has layers."""
    if layout.pipeline * (layout.virtual or 1) == 4 or layout.pipeline_layout:
        more = {"num_layers": 4}
        if has_experts(model):
            more["moe_layer_freq"] = [0, 1, 1, 1]
        return replace(model, name=f"{model.name}-deep", config={**model.config, **more})
    return model


ALL_CASES = [
    (deep_enough(model, layout), layout)
    for model in MODELS
    for layout in LAYOUTS
    if fits(model, layout)
]
