"""The flags of a run made into those of its verification: small, and in a layout of one process.

Works on flags as parsed, before Megatron's validation fills in what follows from them.
"""

from __future__ import annotations

import copy
import math
from argparse import Namespace
from typing import Any

from helm_megatron.arguments import ONE_STAGE

HIDDEN = 64
HEAD = 16
SEQUENCE = 24
ROWS = 64
PADDING = 3  # rows of the vocabulary that are no tokens
# Widths below the hidden one stay multiples of this, as kernels want.
MULTIPLE = 8

# What draws other random numbers in another layout, or has nothing to do with the model.
SWITCHED_OFF = {
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "moe_input_jitter_eps": None,
    "save": None,
    "load": None,
    "tensorboard_dir": None,
    "wandb_project": "",
    "rampup_batch_size": None,
    "step_batch_size_schedule": None,
    "eval_global_batch_size": None,
    "eval_micro_batch_size": None,
}
ONE_PROCESS: dict[str, Any] = {
    "world_size": 1,
    "rank": 0,
    "tensor_model_parallel_size": 1,
    "context_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": None,
    **ONE_STAGE,
    "num_distributed_optimizer_instances": 1,
    "sequence_parallel": False,
    "use_distributed_optimizer": False,
    "overlap_grad_reduce": False,
    "overlap_param_gather": False,
    "overlap_param_gather_with_optimizer_step": False,
    "tp_comm_overlap": False,
    "overlap_p2p_comm_warmup_flush": False,
    "recompute_modules": None,
    "recompute_activations": False,
    "distribute_saved_activations": False,
    # These ask for several ranks, or for the distributed optimizer.
    "hierarchical_context_parallel_sizes": None,
    "cp_comm_type": ["p2p"],
    "tensor_parallel_num_weight_shards": None,
    "expert_tensor_parallel_num_weight_shards": None,
    "defer_embedding_wgrad_compute": False,
    "wgrad_deferral_limit": 0,
    "overlap_moe_expert_parallel_comm": False,
    "overlap_dispatch_backward_with_experts_wgrad": False,
    "delay_wgrad_compute": False,
    "ep_overlap_early_attn_memory_release": False,
    "use_precision_aware_optimizer": False,
    "optimizer_cpu_offload": False,
    **dict.fromkeys(
        ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"), "fp32"
    ),
    "fp8_param_gather": False,
    "reuse_grad_buf_for_mxfp8_param_ag": False,
}
# And what goes with them.
LOW_PRECISION: dict[str, Any] = {
    "bf16": False,
    "fp16": False,
    "fp8": None,
    "fp4": None,
    "fp8_param_gather": False,
    "fp4_param_gather": False,
    "first_last_layers_bf16": False,
    "reuse_grad_buf_for_mxfp8_param_ag": False,
    "cross_entropy_loss_fusion": False,  # its gradient is bf16
}


def prepare(args: Namespace, full_size: bool, low_precision: bool) -> Namespace:
    """A copy of the flags for the layout itself: its parallel sizes stay, all else may shrink."""
    args = copy.deepcopy(args)
    vars(args).update(SWITCHED_OFF)
    if not low_precision:
        vars(args).update(LOW_PRECISION)
        args.params_dtype = None
    if args.untie_embeddings_and_output_weights is None:
        args.untie_embeddings_and_output_weights = False
    tp = args.tensor_model_parallel_size
    if not full_size:
        _shrink_layers(args)
        _shrink_widths(args)
        _shrink_experts(args)
        args.seq_length = min(args.seq_length or SEQUENCE, _up(SEQUENCE, 2 * tp))
        args.max_position_embeddings = args.seq_length
        args.micro_batch_size = min(args.micro_batch_size or 1, 2)
    if not full_size or (args.padded_vocab_size is None and args.vocab_size is None):
        args.padded_vocab_size = ROWS * tp
        args.vocab_size = args.padded_vocab_size - PADDING
    elif args.padded_vocab_size is None:
        args.padded_vocab_size = _up(args.vocab_size, args.make_vocab_size_divisible_by * tp)
    elif args.vocab_size is None:
        args.vocab_size = args.padded_vocab_size
    args.global_batch_size = args.micro_batch_size * microbatches(args)
    return args


def one_process(args: Namespace) -> Namespace:
    """The same model in a layout of one process, from what `prepare` returns."""
    args = copy.deepcopy(args)
    vars(args).update({k: v for k, v in ONE_PROCESS.items() if hasattr(args, k)})
    return args


def microbatches(args: Namespace) -> int:
    """Of a global batch: for each replica twice what fills the pipeline."""
    stages = args.pipeline_model_parallel_size
    shards = args.tensor_model_parallel_size * args.context_parallel_size * stages
    replicas = args.world_size // shards
    return 2 * stages * replicas


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _shrink_layers(args: Namespace) -> None:
    """As few layers as fill every pipeline stage with each kind of layer there is.

    An uneven split of the layers is one of their number: it keeps them all.
    """
    uneven = (
        args.pipeline_model_parallel_layout
        or args.decoder_first_pipeline_num_layers
        or args.decoder_last_pipeline_num_layers
        or args.account_for_embedding_in_pipeline_split
        or args.account_for_loss_in_pipeline_split
    )
    if uneven:
        return
    layers, stages = args.num_layers, args.pipeline_model_parallel_size
    if args.num_layers_per_virtual_pipeline_stage:
        stages = layers // args.num_layers_per_virtual_pipeline_stage
        args.num_layers_per_virtual_pipeline_stage = 1
    elif args.num_virtual_stages_per_pipeline_rank:
        stages *= args.num_virtual_stages_per_pipeline_rank
    kept = min(layers, _up(2, stages))
    args.num_layers = kept
    freq = args.moe_layer_freq
    if args.num_experts is None or freq == 1:
        return
    pattern = [int(i % freq == 0) for i in range(layers)] if isinstance(freq, int) else list(freq)
    picked = [pattern[i * layers // kept] for i in range(kept)]
    for kind in set(pattern) - set(picked):
        # A kind that is rare is at one of the ends: dense first layers.
        picked[0 if pattern[0] == kind else -1] = kind
    args.moe_layer_freq = picked


def _shrink_widths(args: Namespace) -> None:
    """Heads of the same grouping, and every width in proportion to the hidden one."""
    tp = args.tensor_model_parallel_size
    heads, hidden = args.num_attention_heads, args.hidden_size
    grouped = args.group_query_attention and not args.multi_latent_attention
    groups = args.num_query_groups if grouped else heads
    kept_groups = min(groups, tp if tp > 2 else 2 * tp if groups % (2 * tp) == 0 else tp)
    kept_heads = kept_groups * min(heads // groups, 2)
    channels = args.kv_channels or hidden // heads
    kept_channels = min(channels, HEAD)
    kept_hidden = min(hidden, max(HIDDEN, kept_heads * kept_channels))
    if kept_hidden == hidden:
        return
    args.num_attention_heads = kept_heads
    if grouped:
        args.num_query_groups = kept_groups
    args.kv_channels = kept_channels
    args.hidden_size = kept_hidden
    for name in (
        "ffn_hidden_size moe_ffn_hidden_size moe_shared_expert_intermediate_size "
        "q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim"
    ).split():
        width = getattr(args, name)
        if width is not None:
            sharded = MULTIPLE * tp if "lora" not in name and "head" not in name else MULTIPLE
            proportional = round(width * kept_hidden / hidden / sharded) * sharded
            setattr(args, name, min(width, max(sharded, proportional)))


def _shrink_experts(args: Namespace) -> None:
    """As few experts as give each expert-parallel rank two and routing something to choose."""
    if args.num_experts is None:
        return
    groups = args.moe_router_num_groups or 1
    unit = math.lcm(args.expert_model_parallel_size, groups)
    if args.num_experts % unit:
        return
    chosen_groups = args.moe_router_group_topk or 1
    least = max(
        2 * args.expert_model_parallel_size,
        args.moe_router_topk + 1,
        2 * groups,
        # The chosen groups must hold the chosen experts.
        -(-args.moe_router_topk // chosen_groups) * groups,
    )
    args.num_experts = min(args.num_experts, _up(least, unit))
