"""The range of every number among the flags: Megatron's own parser takes any."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from helm_megatron.checks.refusals import Rules, flag_of


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both finite; `words` for the user."""

    words: str
    low: float
    high: float = math.inf
    # Whether the ends belong to it.
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.low_open else self.low <= value
        below = value < self.high if self.high_open else value <= self.high
        return above and below and math.isfinite(value)


def _up_to(high: int, low: int = 1) -> Range:
    return Range(f"a whole number from {low:,} to {high:,}", low, high)


_RANGES: dict[Range, str] = {
    # Of the model and the layout: what a process holds in lists.
    _up_to(100_000): """
        tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size
        expert_model_parallel_size expert_tensor_parallel_size hierarchical_context_parallel_sizes
        tensor_parallel_num_weight_shards expert_tensor_parallel_num_weight_shards
        microbatch_group_size_per_vp_stage num_distributed_optimizer_instances num_layers
        encoder_num_layers decoder_num_layers num_attention_heads num_query_groups
        decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers
        num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank
        recompute_num_layers moe_router_topk moe_router_num_groups moe_router_group_topk
        moe_upcycling_granularity ddp_num_buckets replication_jump replication_factor
        """,
    _up_to(100_000, 0): """
        num_experts cpu_offloading_num_layers num_layers_at_start_in_bf16
        num_layers_at_end_in_bf16 mtp_num_layers cuda_graph_warmup_steps
        fine_grained_offloading_max_inflight_offloads
        """,
    # Threads and processes.
    _up_to(1024): "num_dataset_builder_threads dist_ckpt_workers",
    _up_to(1024, 0): "num_workers",
    # Widths, lengths, batches.
    _up_to(100_000_000): """
        hidden_size ffn_hidden_size kv_channels moe_ffn_hidden_size
        moe_shared_expert_intermediate_size q_lora_rank kv_lora_rank qk_head_dim
        qk_pos_emb_head_dim v_head_dim seq_length encoder_seq_length decoder_seq_length
        max_position_embeddings yarn_original_max_position_embeddings rotary_base
        rotary_seq_len_interpolation_factor max_seqlen_per_dp_cp_rank micro_batch_size
        global_batch_size eval_micro_batch_size eval_global_batch_size vocab_size
        padded_vocab_size make_vocab_size_divisible_by logits_chunk_size fp8_interval
        fp8_amax_history_len mlp_chunks_for_training mlp_chunks_for_prefill moe_latent_size
        moe_mlp_glu_interleave_size moe_shared_expert_glu_interleave_size
        """,
    _up_to(100_000_000, 0): "vocab_extra_ids tiktoken_num_special_tokens null_tokenizer_eod_id",
    _up_to(100_000_000, -1): "null_tokenizer_pad_id",
    # Iterations, samples, intervals, sizes in bytes or elements.
    _up_to(10**15): """
        train_iters train_samples exit_interval exit_duration_in_mins log_interval eval_interval
        tensorboard_log_interval tensorboard_queue_size log_memory_interval save_interval
        save_params_interval save_activations_interval save_tokens_per_expert_interval
        save_wgrads_interval save_dgrads_interval save_retain_interval
        non_persistent_save_interval lr_decay_iters lr_decay_samples lr_wsd_decay_iters
        lr_wsd_decay_samples check_weight_hash_across_dp_replicas_interval train_sync_interval
        gpu_sniff_test_interval adlr_autoresume_interval ddp_bucket_size hysteresis
        suggested_communication_unit_size inprocess_max_iterations inprocess_active_world_size
        moe_routing_trace_max_training_iters
        """,
    _up_to(10**15, 0): """
        eval_iters start_eval_at_iter lr_warmup_iters lr_warmup_samples iterations_to_skip
        ckpt_step override_ckpt_iteration manual_gc_interval wgrad_deferral_limit profile_step_start
        profile_step_end profile_ranks rampup_batch_size flight_recorder_trace_buffer_size
        min_offloaded_tensor_size delta_offload_bytes_across_pp_ranks ft_num_warmup_iters
        error_injection_rate local_rank batch_size warmup model_parallel_size
        fault_injector_num_ranks fault_injector_delay_start_iteration fault_injector_seed
        """,
    _up_to(1_000_000): "distributed_timeout_minutes distributed_timeout_seconds_after_init",
    # NumPy takes 32 bits; ranks add to it.
    _up_to(4_000_000_000): "seed",
    _up_to(50, 0): "logging_level",
    _up_to(2, 0): "empty_unused_memory_level",
    _up_to(4): "flash_attention_version",
    _up_to(100, -100): "fp8_margin",
    _up_to(19, -20): "async_ckpt_cpu_priority",
    _up_to(3, 0): "async_ckpt_io_priority",
    _up_to(10_000): """
        moe_flex_dispatcher_num_sms moe_deepep_num_sms moe_hybridep_num_sms muon_num_ns_steps
        moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute
        moe_hybridep_num_sms_preprocessing moe_paged_stash_page_size straggler_minmax_count
        """,
    _up_to(65_535): "straggler_ctrlr_port",
    Range("a number of 0 or more", 0): """
        lr min_lr decoupled_lr decoupled_min_lr lr_warmup_init weight_decay start_weight_decay
        end_weight_decay clip_grad moe_aux_loss_coeff moe_z_loss_coeff
        moe_router_bias_update_rate moe_input_jitter_eps init_method_std
        embedding_init_method_std embedding_lr_mult curvature_lr_mult mid_level_dataset_surplus
        mtp_loss_scaling_factor moe_paged_stash_buffer_size_factor_cuda
        moe_paged_stash_buffer_size_factor_cpu inprocess_last_call_wait
        inprocess_termination_grace_time fault_injector_fault_delay fault_injector_mtti_seconds
        fault_injector_offset_seconds
        """,
    Range("a positive number", 0, low_open=True): """
        adam_eps layernorm_epsilon loss_scale initial_loss_scale min_loss_scale loss_scale_window
        rotary_scaling_factor rope_scaling_factor yarn_beta_fast yarn_beta_slow qk_clip_threshold
        moe_expert_capacity_factor moe_expert_rank_capacity_factor moe_router_topk_scaling_factor
        muon_extra_scale_factor residual_scale mup_width_mult mup_embedding_mult mup_output_mult
        mup_base_head_dim inprocess_monitor_thread_interval inprocess_monitor_process_interval
        inprocess_progress_watchdog_interval inprocess_heartbeat_interval inprocess_soft_timeout
        inprocess_hard_timeout inprocess_heartbeat_timeout inprocess_barrier_timeout
        inprocess_completion_timeout
        """,
    Range("from 0 to below 1", 0, 1, high_open=True): """
        hidden_dropout attention_dropout adam_beta1 adam_beta2 sgd_momentum muon_momentum
        lion_beta1 lion_beta2 lr_warmup_fraction moe_router_quantile_balancing_ema
        """,
    Range("above 0, at most 1", 0, 1, low_open=True): "rotary_percent",
    Range("from 0 to 1", 0, 1): """
        activation_offload_fraction optimizer_offload_fraction qk_clip_alpha
        """,
    Range("a finite number", -math.inf): """
        glu_linear_offset mscale mscale_all_dim moe_router_force_biased mup_attn_scale_power
        activation_func_clamp_value
        """,
}
RANGES = {name: range_ for range_, names in _RANGES.items() for name in names.split()}


def rules(args: argparse.Namespace) -> Rules:
    """Every number within its range."""
    for name, allowed in RANGES.items():
        given = getattr(args, name, None)
        values = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        for value in values:
            if isinstance(value, int | float):
                yield value not in allowed, f"{flag_of(name)} {value}: must be {allowed.words}"
