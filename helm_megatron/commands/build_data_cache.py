"""Build Megatron's index cache before a job, so that all its nodes only read it.

Takes the training's own flags, all of them: the cache is found again by many. --data-cache-path
says where it goes. Needs one process and no GPU, whatever the layout.

Example:
    python tools/build_data_cache.py --data-args-path blend.txt --split 99,1,0 \
        --data-cache-path /shared/cache ...   # the dots: as for pretrain_helm.py
"""

import argparse
import logging
import math
import sys
import time
from pathlib import Path

from helm_megatron import megatron_patches

megatron_patches.apply()  # before anything imports megatron

from megatron.training import get_tokenizer  # noqa: E402
from megatron.training.arguments import parse_args, validate_args  # noqa: E402
from megatron.training.global_vars import set_global_variables  # noqa: E402
from megatron.training.training import update_train_iters  # noqa: E402

from helm_megatron.checks import (  # noqa: E402
    ArgumentError,
    check_args,
    check_training,
    check_values,
    megatrons_refusals,
)
from helm_megatron.data.training.cache import build_cache  # noqa: E402
from helm_megatron.data.training.fit import check_fit  # noqa: E402
from helm_megatron.data.training.parts import check_parts  # noqa: E402
from helm_megatron.data.training.validation import take_over  # noqa: E402
from helm_megatron.errors import HelmError  # noqa: E402
from helm_megatron.pretrain import add_args  # noqa: E402


def prepare() -> argparse.Namespace:
    """Set Megatron up, in one process, for the data of a training command.

    The flags are all those of the training, as the names of the cache's files depend on many.

    Raises:
        ArgumentError, DataError, AssertionError, ValueError: the flags cannot work.
    """
    args = parse_args(add_args)
    check_values(args)
    args.world_size = ranks_of(args)
    check_args(args)
    check_training(args)
    if args.mock_data or not args.data_cache_path:
        raise ArgumentError("--data-cache-path is missing: the folder of the cache")
    if args.global_batch_size is None:
        raise ArgumentError(
            "--global-batch-size is missing: without it the number of samples depends on the ranks"
        )
    # Here the cache is built, not read, and no rank is the one that writes logs.
    args.dataloader_fast_cache_load = args.dataloader_defer_npy_index_mmap = False
    args.rank = -1
    validate_args(args)
    set_global_variables(args)
    check_fit(args, get_tokenizer())
    check_parts(args)
    take_over(args)
    if args.train_samples:
        update_train_iters(args)
    return args


def ranks_of(args: argparse.Namespace) -> int:
    """As many ranks as the layout needs at least; how many there are does not change the data."""
    dense = args.tensor_model_parallel_size * args.context_parallel_size
    experts = args.expert_model_parallel_size * (
        args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    )
    return math.lcm(dense, experts) * args.pipeline_model_parallel_size


def main() -> None:
    """Run the tool; errors end it with one line and exit code 1, flags that cannot be with 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("megatron.core.datasets").setLevel(logging.INFO)  # its progress
    start = time.monotonic()
    try:
        with megatrons_refusals():
            folder = Path(prepare().data_cache_path)
            made, there = build_cache(folder)
    except HelmError as error:
        # As pretrain_helm.py ends with the same flags.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    size, seconds = sum(path.stat().st_size for path in made), time.monotonic() - start
    print(f"{folder}: {len(made)} new files, {size / 1e6:,.1f} MB, in {seconds:.1f} s", end=" ")
    print(f"({there} files were there)")
