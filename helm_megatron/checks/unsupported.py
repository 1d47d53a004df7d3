"""Flags of Megatron's that do not work with HELM, or fail only once the model is there."""

from __future__ import annotations

import argparse
import math

from helm_megatron.checks.refusals import Rules, flag_of, has_transformer_engine

# Flags that would be ignored or fail late: attribute, its harmless value, and why.
_UNSUPPORTED = {
    "squared_relu": (False, "HELM's activation is --swiglu"),
    "quick_geglu": (False, "HELM's activation is --swiglu"),
    "openai_gelu": (False, "HELM's activation is --swiglu"),
    "use_te_activation_func": (False, "HELM's activation is its own"),
    "use_fused_weighted_squared_relu": (False, "HELM's activation is --swiglu"),
    "glu_linear_offset": (0.0, "HELM's activation has no offset"),
    "activation_func_clamp_value": (None, "HELM's activation is not clamped"),
    "add_qkv_bias": (False, "Lorentz linears bring their own bias"),
    "mtp_num_layers": (None, "HELM has no multi-token prediction"),
    "use_megatron_fsdp": (False, "HELM has --use-distributed-optimizer only"),
    "use_torch_fsdp2": (False, "HELM has --use-distributed-optimizer only"),
    "init_model_with_meta_device": (False, "HELM has --use-distributed-optimizer only"),
    "window_size": (None, "HELM's attention has no window"),
    "window_attn_skip_freq": (None, "HELM's attention has no window"),
    "heterogeneous_layers_config_path": (None, "HELM's layers are all of one width"),
    "softmax_type": ("vanilla", "HELM's attention has the plain softmax"),
    "attention_output_gate": (False, "HELM's heads have no gate"),
    "apply_query_key_layer_scaling": (False, "the attention temperature is learned"),
    "apply_residual_connection_post_layernorm": (False, "HELM's residual is of the layer's input"),
    "fp32_residual_connection": (False, "the residual computes in fp32 by itself"),
    "fp16_lm_cross_entropy": (False, "HELM's loss is computed in fp32"),
    "moe_shared_expert_overlap": (False, "not with HELM's combination of experts"),
    "moe_shared_expert_gate": (False, "the shared expert's weight is 1"),
    "moe_latent_size": (None, "not with HELM's experts"),
    "moe_apply_probs_on_input": (False, "experts are weighed when they are combined"),
    "moe_use_upcycling": (False, "a HELM-D is not made into a HELM-MiCE"),
    "moe_single_grouped_weight": (False, "HELM's experts keep a weight each"),
    "moe_single_grouped_bias": (False, "HELM's experts keep a bias each"),
    "use_grouped_gemm_for_shared_expert": (False, "HELM has one shared expert"),
    "use_grouped_gemm_for_dense_mlp": (False, "a dense layer is one feed-forward"),
    "use_transformer_engine_op_fuser": (False, "not with HELM's linears"),
    "use_kitchen_attention": (False, "HELM's attention is its own"),
    "fake_process_group": (False, "pretrain_helm.py trains; plan a layout by helm-megatron plan"),
    "multiple_validation_sets": (False, "pretrain_helm.py has one validation set"),
    "hybrid_context_parallel": (False, "HELM's attention cuts a sequence evenly"),
    "check_for_spiky_loss": (False, "pretrain_helm.py looks for NaN and Inf only"),
    "qk_l2_norm": (False, "HELM's heads have RMSNorm: --qk-layernorm"),
    "moe_mlp_glu_interleave_size": (None, "HELM's experts keep both halves apart"),
    "moe_shared_expert_glu_interleave_size": (None, "HELM's experts keep both halves apart"),
    "init_method_xavier_uniform": (False, "Megatron 0.19 cannot make its config of it"),
    "use_cpu_initialization": (None, "every layout has the same initial weights without it"),
    "spec": (None, "HELM's layers have their own"),
    "config_logger_dir": ("", "Megatron cannot write HELM's config"),
    "checkpoint_activations": (False, "Megatron has --recompute-granularity instead"),
    "batch_size": (None, "Megatron has --micro-batch-size instead"),
    "warmup": (None, "Megatron has --lr-warmup-fraction instead"),
    "model_parallel_size": (None, "Megatron has --tensor-model-parallel-size instead"),
    "add_position_embedding": (True, "Megatron has --position-embedding-type instead"),
    "encoder_num_layers": (None, "pass --num-layers"),
    "encoder_seq_length": (None, "pass --seq-length"),
}
# Megatron fills these in with the values of other flags.
_FILLED_IN = {"encoder_num_layers": "num_layers", "encoder_seq_length": "seq_length"}


def rules(args: argparse.Namespace) -> Rules:
    """None of them is set, and what others need is there."""
    for attribute, (harmless, why) in _UNSUPPORTED.items():
        value = getattr(args, attribute, harmless)
        filled_in = attribute in _FILLED_IN and value == getattr(args, _FILLED_IN[attribute])
        yield (
            value != harmless and not filled_in,
            f"{flag_of(attribute)}: {why}; drop the flag",
        )
    local = args.transformer_impl == "local"
    needs = "needs --transformer-impl transformer_engine"
    yield local and bool(args.fp8), f"--fp8-format: {needs}"
    yield local and bool(args.fp4), f"--fp4-format: {needs}"
    yield (
        args.moe_router_padding_for_quantization and not (args.fp8 or args.fp4),
        "--moe-router-padding-for-quantization: needs --fp8-format or --fp4-format",
    )
    yield (
        args.ckpt_convert_format is not None and None in (args.ckpt_convert_save, args.load),
        f"--ckpt-convert-format {args.ckpt_convert_format}: needs --load and --ckpt-convert-save",
    )
    yield (
        args.use_precision_aware_optimizer and not has_transformer_engine(),
        "--use-precision-aware-optimizer: is Transformer Engine's, which is not installed; install "
        "the extra `te`, or drop the flag",
    )
    if args.num_experts and args.moe_expert_capacity_factor:
        yield _capacity_rule(args)


def process_rules(args: argparse.Namespace) -> Rules:
    """As Megatron makes its process groups, after all processes have met."""
    tp, pp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    dense = tp * args.context_parallel_size
    experts = (args.expert_tensor_parallel_size or tp) * args.expert_model_parallel_size
    world = args.world_size
    yield (
        world % (dense * pp) != 0,
        f"--tensor-model-parallel-size {tp}, --pipeline-model-parallel-size {pp} and "
        f"--context-parallel-size {args.context_parallel_size}: their product does not divide the "
        f"{world} processes",
    )
    yield (
        world % (experts * pp) != 0,
        f"--expert-model-parallel-size {args.expert_model_parallel_size} with "
        f"--pipeline-model-parallel-size {pp} and {experts // args.expert_model_parallel_size} "
        f"tensor-parallel ranks of an expert: their product does not divide the {world} processes",
    )
    yield (
        args.use_tp_pp_dp_mapping and pp > 1 and dense != experts,
        "--use-tp-pp-dp-mapping: with pipeline parallelism needs as many ranks for experts "
        f"({experts}) as for a dense layer ({dense})",
    )


def _capacity_rule(args: argparse.Namespace) -> tuple[bool, str]:
    """The router picks each expert's best tokens: there must be so many."""
    shards = args.tensor_model_parallel_size if args.sequence_parallel else 1
    length = args.seq_length or 0
    tokens = length * (args.micro_batch_size or 1) // (shards * args.context_parallel_size)
    factor, chosen = args.moe_expert_capacity_factor, args.moe_router_topk
    capacity = math.ceil(tokens * chosen / args.num_experts * factor)
    most = args.num_experts / chosen
    return (
        capacity > tokens > 0,
        f"--moe-expert-capacity-factor {factor}: room for {capacity} tokens in an expert, but a "
        f"rank has {tokens}; at most {most:g}, the number of experts by --moe-router-topk",
    )
