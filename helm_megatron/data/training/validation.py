"""Validation that compares: the same samples at every evaluation, in every layout, after a resume.

Megatron's loader goes on in the validation set from one evaluation to the next, so each number is
of other samples. Here a validation (and test) set is a fixed number of samples, read from the first
to the last at each evaluation: those of `--eval-iters`, or with `--full-validation` all. Where they
do not fill the last global batch, samples without any loss do, so the layout does not matter.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.training import get_args
from torch.utils.data import DataLoader, Dataset


def take_over(args: argparse.Namespace) -> None:
    """Take `--full-validation` of one validation set from Megatron, whose own way of it fails."""
    args.whole_validation = args.full_validation and not args.multiple_validation_sets
    if args.whole_validation:
        args.full_validation = False
        args.eval_iters = max(args.eval_iters, 1)  # 0 would be no evaluation


def is_whole(args: argparse.Namespace) -> bool:
    """Whether evaluations read whole sets; mock data has no end, and so no whole."""
    asked = args.full_validation or getattr(args, "whole_validation", False)
    return asked and not args.mock_data


def sizes(args: argparse.Namespace, num_samples: Sequence[int | None]) -> list[int | None]:
    """How many samples to build of `[train, valid, test]`; None: as many as there are.

    `num_samples` is what Megatron asks for: of the validation set as many as all evaluations of the
    run together would read.
    """
    if args.multiple_validation_sets or not (args.eval_iters or is_whole(args)):
        return list(num_samples)
    evaluated = None if is_whole(args) else args.eval_iters * args.eval_global_batch_size
    return [num_samples[0], evaluated, evaluated]


class FixedSet(Dataset):
    """The first `samples` of a dataset, and samples without loss up to whole global batches."""

    def __init__(self, dataset: Any, samples: int, global_batch: int) -> None:
        self.dataset, self.samples = dataset, samples
        self.iterations = -(-samples // global_batch)
        self._length = self.iterations * global_batch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < self.samples:
            return self.dataset[index]
        sample = dict(self.dataset[0])
        return sample | {"loss_mask": torch.zeros_like(sample["loss_mask"])}

    def loader(self) -> Endless:
        """This rank's micro-batches; Megatron's loop asks for it (`fixed_validation` patch)."""
        args = get_args()
        batches = _RanksBatches(
            len(self),
            args.eval_micro_batch_size,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        )
        workers = args.num_workers
        return Endless(
            DataLoader(
                self,
                batch_sampler=batches,
                num_workers=workers,
                pin_memory=True,
                persistent_workers=workers > 0,
            )
        )


class Endless:
    """A loader that begins anew after its last batch."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from self.loader


class _RanksBatches:
    """Indices of one data-parallel rank's micro-batches of a set that fills its global batches."""

    def __init__(self, samples: int, micro_batch: int, rank: int, ranks: int) -> None:
        self.starts = range(rank * micro_batch, samples, micro_batch * ranks)
        self.micro_batch = micro_batch

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(range(start, start + self.micro_batch))


def fixed(args: argparse.Namespace, datasets: Sequence[Any]) -> list[Any]:
    """`[train, valid, test]` with the last two as fixed sets, whose iterations all ranks learn.

    Ranks that read no data have None for each.
    """
    train, *evaluated = datasets
    if args.multiple_validation_sets or not args.eval_iters:
        return list(datasets)
    asked = args.eval_iters * args.eval_global_batch_size
    result: list[FixedSet | None] = []
    for dataset in evaluated:
        if dataset is None:
            result.append(None)
            continue
        samples = len(dataset) if is_whole(args) else min(len(dataset), asked)
        result.append(FixedSet(dataset, samples, args.eval_global_batch_size))
    iterations = torch.tensor([s.iterations if s else 0 for s in result], device="cuda")
    dist.all_reduce(iterations, op=dist.ReduceOp.MAX)
    args.fixed_iterations = iterations.tolist()
    return [train, *result]
