"""From Megatron's datasets to the tensors of one training step."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import (
    flatten_batch_for_packed_sequences,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
)
from megatron.training import get_args, get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

KEYS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids", "packed_seq_params")


def next_batch(data_iterator: Iterator | None, vp_stage: int | None) -> dict[str, Any]:
    """The next micro-batch on every rank, by KEYS; absent ones are None.

    tokens, labels, loss_mask, position_ids: `[b, s]` of this context-parallel rank's tokens.
    attention_mask: `[b, 1, s, whole sequence]`, True where blocked, or None for plain causal
    attention. packed_seq_params: the bounds of the documents, all packed into `[1, b * s]`, with
    `--dataloader-inter-document-masking`. Inner pipeline stages need only what tells documents
    apart.
    """
    args = get_args()
    if not _has_data(args, vp_stage):
        return dict.fromkeys(KEYS)
    batch = _on_this_tp_rank(args, data_iterator, vp_stage)
    if args.dataloader_inter_document_masking:
        batch = _packed(args, batch)
    else:
        group = parallel_state.get_context_parallel_group()
        batch = get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=group)
    return {key: batch.get(key) for key in KEYS}


def _on_this_tp_rank(
    args: argparse.Namespace, data_iterator: Iterator | None, vp_stage: int | None
) -> dict[str, Any]:
    """The micro-batch, sent to all ranks of the tensor-parallel group by its first."""
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    batch: dict[str, Any] = {}
    if tp_rank == 0:
        loaded = next(data_iterator)  # type: ignore[arg-type]
        batch = {key: value.cuda(non_blocking=True) for key, value in loaded.items()}
        if args.dataloader_inter_document_masking:
            batch["cu_seqlens_padded"] = None
    stage = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    is_last = parallel_state.is_pipeline_last_stage(**stage)
    return get_batch_on_this_tp_rank(
        batch,
        has_cu_seqlens=args.dataloader_inter_document_masking,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=parallel_state.get_tensor_model_parallel_src_rank(),
        broadcast_group=parallel_state.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=tp_rank,
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        # Megatron sends no mask to inner stages; the first stage's tokens do no harm there.
        is_pipeline_first_stage=not is_last or parallel_state.is_pipeline_first_stage(**stage),
        is_pipeline_last_stage=is_last,
    )


def _packed(args: argparse.Namespace, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as one sequence, with the bounds of its documents."""
    batch = flatten_batch_for_packed_sequences(batch)
    bounds, longest = batch["cu_seqlens"].squeeze(0), int(batch["max_seqlen"].max())
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        tokens_per_sample=args.seq_length,
    )
    return batch | {"packed_seq_params": packed}


def _has_data(args: argparse.Namespace, vp_stage: int | None) -> bool:
    """Whether this pipeline stage has a use for the batch."""
    documents_apart = args.reset_attention_mask or args.dataloader_inter_document_masking
    return documents_apart or is_first_or_last_pipeline_stage(vp_stage)


def train_valid_test_datasets(num_samples: list[int], vp_stage: int | None = None) -> Any:
    """Megatron's GPT datasets of the command line: `[train, valid, test]`."""
    args = get_args()
    dataset = MockGPTDataset if args.mock_data else GPTDataset
    return BlendedMegatronDatasetBuilder(
        dataset, num_samples, partial(_is_built_here, vp_stage), dataset_config()
    ).build()


# Each rank builds what it needs itself (megatron.training asks for this attribute).
train_valid_test_datasets.is_distributed = True  # type: ignore[attr-defined]


def _is_built_here(vp_stage: int | None) -> bool:
    first_of_group = parallel_state.get_tensor_model_parallel_rank() == 0
    return first_of_group and _has_data(get_args(), vp_stage)


def dataset_config() -> GPTDatasetConfig:
    """What Megatron's datasets are built from, by the command line and its tokenizer."""
    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    return GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        full_validation=args.full_validation,
        multiple_validation_sets=args.multiple_validation_sets,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        inter_document_masking=args.dataloader_inter_document_masking,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        object_storage_cache_path=args.object_storage_cache_path,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
        allow_ambiguous_pad_tokens=args.allow_ambiguous_pad_tokens,
        fast_cache_load=args.dataloader_fast_cache_load,
        defer_npy_index_mmap=args.dataloader_defer_npy_index_mmap,
    )
