"""Megatron's index cache (which tokens make which sample), built before the job that reads it."""

import argparse
import math
import os
import tempfile
from pathlib import Path

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.training import get_tokenizer
from megatron.training.arguments import parse_args, validate_args
from megatron.training.global_vars import set_global_variables
from megatron.training.training import get_train_valid_test_num_samples, update_train_iters

from helm_megatron.checks import ArgumentError, check_args
from helm_megatron.data.errors import DataError
from helm_megatron.data.partial import full_disk
from helm_megatron.data.training.batch import dataset_config
from helm_megatron.data.training.fit import check_fit
from helm_megatron.pretrain import add_args


def prepare() -> argparse.Namespace:
    """Set Megatron up, in one process, for the data of a training command.

    The flags are all those of the training, as the names of the cache's files depend on many.

    Raises:
        ArgumentError, DataError, AssertionError, ValueError: the flags cannot work.
    """
    args = parse_args(add_args)
    check_args(args)
    if args.mock_data or not args.data_cache_path:
        raise ArgumentError("--data-cache-path is missing: the folder of the cache")
    if args.global_batch_size is None:
        raise ArgumentError(
            "--global-batch-size is missing: without it the number of samples depends on the ranks"
        )
    # As many ranks as the layout needs at least; how many there are does not change the data.
    dense = args.tensor_model_parallel_size * args.context_parallel_size
    experts = args.expert_model_parallel_size * (args.expert_tensor_parallel_size or 1)
    args.world_size = math.lcm(dense, experts) * args.pipeline_model_parallel_size
    # Here the cache is built, not read, and no rank is the one that writes logs.
    args.dataloader_fast_cache_load = args.dataloader_defer_npy_index_mmap = False
    args.rank = -1
    validate_args(args)
    set_global_variables(args)
    check_fit(args, get_tokenizer())
    if args.train_samples:
        update_train_iters(args)
    return args


def build_cache(folder: Path) -> tuple[list[Path], int]:
    """Build the cache in a folder; files appear in it only when they are whole.

    What is there already is used. Call `prepare` before.

    Returns:
        The new files, and how many were there.

    Raises:
        DataError: the folder cannot be written, or the data does not make a sample.
    """
    with full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        there = [path for path in folder.iterdir() if path.is_file()]
        with tempfile.TemporaryDirectory(dir=folder, prefix=".staged-") as staging:
            for path in there:
                Path(staging, path.name).symlink_to(path.resolve())
            config = dataset_config()
            config.path_to_cache = staging
            samples = list(get_train_valid_test_num_samples())
            try:
                BlendedMegatronDatasetBuilder(GPTDataset, samples, lambda: True, config).build()
            except (AssertionError, ValueError, IndexError, RuntimeError) as error:
                raise DataError(f"the data cannot be split and sampled so: {error}") from error
            made = sorted(p for p in Path(staging).iterdir() if not p.is_symlink())
            for path in made:
                with path.open("rb") as file:
                    os.fsync(file)
            return [path.rename(folder / path.name) for path in made], len(there)
