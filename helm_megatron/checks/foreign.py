"""Megatron's flags of other models and programs: here they would be ignored without a word."""

from __future__ import annotations

import argparse
import fnmatch
import functools

from helm_megatron.checks.refusals import Rules, flag_of, megatrons_flags

# Why, and patterns of attributes.
_FOREIGN = {
    "pretrain_helm.py does no reinforcement learning": """
        perform_rl_step rl_* grpo_* langrl_env_config refit_method""",
    "pretrain_helm.py trains language models only": """
        biencoder_* ict_* bert_* titles_data_path query_in_block_prob use_one_sent_docs
        evidence_data_path retriever_* block_data_path embedding_path indexer_* num_classes img_*
        num_channels patch_dim classes_fraction data_per_class_fraction data_sharding head_lr_mult
        vision_* swin_* mask_type mask_factor mask_prob short_seq_prob sample_rate iter_per_epoch
        dino_* output_bert_embeddings bert_embedder_type decoder_seq_length decoder_num_layers
        mrope_section""",
    "generate text by helm-megatron generate": """
        inference_* flash_decode max_tokens_to_oom use_legacy_static_engine enable_chunked_prefill
        decode_only_cuda_graphs num_speculative_tokens cache_mla_latents symmetric_ar_type
        nccl_all_reduce_for_prefill mlp_chunks_for_prefill use_same_sampling_seed_across_dp_ranks
        moe_pad_experts_for_cuda_graph_inference mamba_inference_*""",
    "HELM's layers are attention, feed-forward and experts": """
        mamba_* disable_mamba_mem_eff_path use_mamba_mem_eff_path is_hybrid_model hybrid_*
        linear_* dsa_* experimental_attention_variant mtp_* heterogeneous_*""",
    "pretrain_helm.py does not distill": "logits_save_* logits_load_*",
    "pretrain_helm.py has no fill-in-the-middle data": "fim_*",
    "pretrain_helm.py pretrains only": "sft sft_tokenizer_prompt_format",
    "HELM's attention has the relative positions of --position-embedding-type rope only": """
        relative_attention_* no_rope_freq""",
    "HELM's parameters have their own scales": "use_mup mup_*",
}


@functools.cache
def foreign_flags() -> dict[str, str]:
    """The attributes of these flags, and why each is refused."""
    return {
        name: why
        for why, patterns in _FOREIGN.items()
        for pattern in patterns.split()
        for name in fnmatch.filter(megatrons_flags(), pattern)
    }


def rules(args: argparse.Namespace) -> Rules:
    """None of them is set; looks at flags as parsed, before Megatron fills in others."""
    flags = megatrons_flags()
    for name, why in foreign_flags().items():
        given = getattr(args, name, flags[name].default)
        yield given != flags[name].default, f"{flag_of(name)}: {why}; drop the flag"
