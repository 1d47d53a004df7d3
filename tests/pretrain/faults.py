"""Faults to plant in a rank before its run begins."""

import resource
import signal
import time

from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.training import get_args, training

from helm_megatron import pretrain


def full_disk(rank):
    """Files cannot grow beyond 100 kB: a shard is larger, a log is not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def slow_disk(rank):
    """Writing a shard takes a second, in two halves."""
    write = FileSystemWriterAsync.write_preloaded_data

    def slowly(transforms, local_proc_idx, write_bucket, *args, **kwargs):
        name, key, (values, tensors) = write_bucket
        for tensors_now in (tensors[: len(tensors) // 2], tensors):
            out = write(
                transforms, local_proc_idx, (name, key, (values, tensors_now)), *args, **kwargs
            )
            time.sleep(0.5)
        return out

    FileSystemWriterAsync.write_preloaded_data = staticmethod(slowly)


def nan_loss(iteration, rank):
    """The loss of an iteration is NaN."""
    check = pretrain.check_loss

    def planted(loss):
        check(loss * float("nan") if get_args().curr_iteration + 1 == iteration else loss)

    pretrain.check_loss = planted


def signals(iteration, numbers, rank):
    """Rank 1 gets signals during an iteration."""

    def raise_them():
        for number in numbers:
            signal.raise_signal(number)

    _before(iteration, rank, raise_them)


def hang(iteration, rank):
    """Rank 1 stays in an iteration for good."""
    _before(iteration, rank, lambda: time.sleep(10_000))


def _before(iteration, rank, what):
    """Rank 1 does something before the step of an iteration."""
    train_step = training.train_step

    def after_it(*args, **kwargs):
        if rank == 1 and get_args().curr_iteration + 1 == iteration:
            what()
        return train_step(*args, **kwargs)

    training.train_step = after_it
