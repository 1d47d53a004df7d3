"""From Megatron's datasets to the tensors of one training step."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import MockGPTDataset
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import (
    flatten_batch_for_packed_sequences,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
)
from megatron.training import get_args, get_tokenizer
from megatron.training.utils import is_first_or_last_pipeline_stage

from helm_megatron.data.errors import DataError
from helm_megatron.data.split import SPLITS
from helm_megatron.data.training import validation
from helm_megatron.data.training.blend import blends_of
from helm_megatron.data.training.dataset import Dataset, DatasetConfig

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
        loaded = _next(data_iterator)  # type: ignore[arg-type]
        _check_ids(loaded, args.padded_vocab_size)
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


def _next(data_iterator: Iterator) -> Any:
    """What comes next; a DataError of a process that loads data has its own words, in one line."""
    try:
        return next(data_iterator)
    except DataError as error:
        last = str(error).strip().splitlines()[-1]  # after the other process's traceback
        name = f"{DataError.__module__}.{DataError.__qualname__}: "
        raise DataError(last.removeprefix(name)) from error


def _check_ids(loaded: dict[str, Any], rows: int) -> None:
    """Refuse tokens that have no row in the embedding, before a GPU fails on them."""
    for name in ("tokens", "labels"):
        low, high = (int(bound) for bound in loaded[name].aminmax())
        if low < 0 or high >= rows:
            raise DataError(
                f"the data has token {low if low < 0 else high:,}, and the embedding {rows:,} rows:"
                " it was damaged, or made with another tokenizer; tools/inspect_data.py says where"
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
    """Megatron's GPT datasets of the command line: `[train, valid, test]`, the last two fixed.

    Raises:
        DataError: the index cache cannot be written or read, or a blend draws too much of a part.
    """
    args = get_args()
    dataset = MockGPTDataset if args.mock_data else Dataset
    builder = BlendedMegatronDatasetBuilder(
        dataset,
        validation.sizes(args, with_the_rest(args, num_samples)),
        partial(_is_built_here, vp_stage),
        dataset_config(),
    )
    try:
        return validation.fixed(args, builder.build())
    except OSError as error:
        raise DataError(_cache_problem(error)) from error
    except IndexError as error:  # the blend's rounding; Megatron says how much of what is wanted
        raise DataError(f"{error}: see --mid-level-dataset-surplus") from error
    except Exception as error:
        if isinstance(error.__cause__, OSError):  # so does the builder say it
            raise DataError(_cache_problem(error.__cause__)) from error
        raise


def with_the_rest(args: argparse.Namespace, samples: Sequence[int | None]) -> list[int | None]:
    """The samples of each part as Megatron counts them, or, if those are more, all that a run has
    drawn up to its checkpoint and will draw after it.

    They are more when it goes on with a smaller global batch. One is left in any case: the loaders
    of a run that has ended, and of parts that are never drawn from, demand it.
    """
    train, valid, test = at_least_one(samples)
    if args.phase_transition_iterations:
        return [train, valid, test]
    last, done = args.train_iters or 0, args.iteration
    if args.consumed_train_samples and train is not None:
        iterations = 0 if args.train_samples else max(0, last - done)
        left = iterations * args.global_batch_size
        train = max(train, args.consumed_train_samples + max(1, left))
    if args.consumed_valid_samples and valid is not None:
        times = max(0, last // args.eval_interval - done // args.eval_interval) + 1
        left = times * args.eval_iters * args.eval_global_batch_size
        valid = max(valid, args.consumed_valid_samples + max(1, left))
    return [train, valid, test]


def at_least_one(samples: Sequence[int | None]) -> list[int | None]:
    """Numbers of samples, none of them 0: of a blend of nothing Megatron makes no loader."""
    return [number if number is None else max(1, number) for number in samples]


def _cache_problem(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    return f"the index cache cannot be made: {where}{reason}; see --data-cache-path"


# Each rank builds what it needs itself (megatron.training asks for this attribute).
train_valid_test_datasets.is_distributed = True  # type: ignore[attr-defined]


def _is_built_here(vp_stage: int | None) -> bool:
    first_of_group = parallel_state.get_tensor_model_parallel_rank() == 0
    return first_of_group and _has_data(get_args(), vp_stage)


def dataset_config() -> DatasetConfig:
    """What Megatron's datasets are built from, by the command line and its tokenizer."""
    args = get_args()
    blend = blend_per_split = None
    if not args.mock_data:
        blends = blends_of(args)
        blend = blends.divided and blends.divided.for_megatron
        parts = [blends.parts[part] for part in SPLITS]
        blend_per_split = [blend and blend.for_megatron for blend in parts] if not blend else None
    return DatasetConfig(
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
