"""Megatron's process groups while a block runs, one layout after another in one process."""

from __future__ import annotations

import contextlib
import gc
from argparse import Namespace
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps
from megatron.core import tensor_parallel
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker


@contextlib.contextmanager
def process_groups(args: Namespace) -> Iterator[None]:
    """Megatron's groups for validated flags, taken down at the end.

    A world of one needs no other process, nor does one of torch's "fake" backend; another is what
    torchrun's variables describe.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(args.local_rank or 0)
    with _torch_group(
        args.distributed_backend,
        store=_store(args),
        rank=args.rank,
        world_size=args.world_size,
        timeout=timedelta(minutes=args.distributed_timeout_minutes),
    ):
        ps.initialize_model_parallel(
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            args.virtual_pipeline_model_parallel_size,
            pipeline_model_parallel_comm_backend=args.pipeline_model_parallel_comm_backend,
            context_parallel_size=args.context_parallel_size,
            expert_model_parallel_size=args.expert_model_parallel_size,
            expert_tensor_parallel_size=args.expert_tensor_parallel_size,
            num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
            distributed_timeout_minutes=args.distributed_timeout_minutes,
            order="tp-cp-ep-pp-dp" if args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp",
            create_gloo_process_groups=args.use_gloo_process_groups,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(args.seed, force_reset_rng=True)
        yield


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Megatron's groups for one process on the CPU, unless there are some already."""
    if dist.is_initialized():
        yield
        return
    with _torch_group("gloo", store=dist.HashStore(), rank=0, world_size=1):
        ps.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
        yield


@contextlib.contextmanager
def _torch_group(backend: str, **options: Any) -> Iterator[None]:
    """torch's group of all processes; with it go Megatron's and what belongs to their model."""
    dist.init_process_group(backend, **options)
    try:
        yield
    finally:
        destroy_moe_metrics_tracker()  # it has one entry for each layer of this model
        ps.destroy_model_parallel()
        dist.destroy_process_group()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _store(args: Namespace) -> dist.Store | None:
    if args.distributed_backend == "fake":
        from torch.testing._internal.distributed.fake_pg import FakeStore

        return FakeStore()
    return dist.HashStore() if args.world_size == 1 else None
