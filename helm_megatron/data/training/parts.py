"""Whether training, validation and test have the tokens that a run would draw, before it starts.

Megatron looks when the model is built already: a part without tokens makes it draw epochs for ever,
one without samples fails an assertion, one that ends too early stops the run when it does.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from megatron.training.training import get_train_valid_test_num_samples

from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import Index
from helm_megatron.data.split import SPLITS, bounds_of, parse_split
from helm_megatron.data.training import validation
from helm_megatron.data.training.blend import Blend, Blends, blends_of, is_remote
from helm_megatron.data.training.dataset import Dataset
from helm_megatron.data.verification import open_whole, problems

# Megatron counts epochs one by one, and keeps a number for each document of each.
EPOCHS = 1_000_000


def has_part(args: argparse.Namespace, part: str) -> bool:
    """Whether the command line gives data to a part, one of `SPLITS`."""
    if args.mock_data:
        return True
    return part in dict(_parts(args, blends_of(args)))


def check_parts(args: argparse.Namespace) -> None:
    """Refuse data that is damaged, or of which Megatron could not draw the run's samples.

    Looks at the whole index of each dataset and at the size of its .bin file; with --check-data at
    every token and hash, too. Data in object storage is not looked at.

    Args:
        args: Megatron's, validated and global.

    Raises:
        DataError: for the first problem found.
    """
    if args.mock_data:
        return
    blends = blends_of(args)
    parts = dict(_parts(args, blends))
    _check_wanted(args, parts)
    indices: dict[str, Index] = {}
    for prefix in dict.fromkeys(prefix for blend in blends.all for prefix in blend.prefixes):
        _check_cache_folder(args.data_cache_path, prefix)
        if not is_remote(prefix):
            indices[prefix] = open_whole(prefix)
            for problem in problems(prefix) if args.check_data else ():
                raise DataError(problem)
    samples = dict(zip(SPLITS, _samples(args), strict=True))
    for part, blend in parts.items():
        if not any(is_remote(prefix) for prefix in blend.prefixes):
            _check_part(args, part, blend, indices, samples[part])


def _parts(args: argparse.Namespace, blends: Blends) -> Iterator[tuple[str, Blend]]:
    """Yield the parts that there are, and what each is drawn from."""
    if blends.divided is None:
        if args.split is not None:
            where = next(blend.where for blend in blends.all)
            raise DataError(f"--split {args.split}: {where} names each part's own data; drop it")
        yield from ((part, blend) for part, blend in blends.parts.items() if blend)
        return
    if args.split is None:
        raise DataError(f"--split is missing: which share of {blends.divided.where} to train on")
    for part, weight in zip(SPLITS, parse_split(args.split), strict=True):
        if weight:
            yield part, blends.divided


def _check_wanted(args: argparse.Namespace, parts: dict[str, Blend]) -> None:
    """Refuse a run that would do nothing, or evaluate where nothing is."""
    given = f"--split {args.split}" if args.split else next(b.where for b in parts.values())
    if not args.skip_train and "train" not in parts:
        raise DataError(f"{given}: leaves nothing to train on; --skip-train only evaluates")
    if args.skip_train and parts.keys() == {"train"}:
        raise DataError(f"--skip-train: {given} leaves nothing to evaluate on")
    if not args.full_validation:
        return
    if "valid" not in parts:
        raise DataError(f"--full-validation: {given} leaves no data for 'valid'; drop the flag")
    if parts["valid"].weights is not None:
        raise DataError(
            f"--full-validation: uses each dataset once; drop the weights of {parts['valid'].where}"
        )


def _samples(args: argparse.Namespace) -> list[int | None]:
    """How many samples the run draws of each part; None: each of its datasets once."""
    iterations = args.train_iters
    if not iterations:  # Megatron sets them later, and needs them here
        args.train_iters = (args.train_samples or 0) // args.global_batch_size
    try:
        return validation.sizes(args, get_train_valid_test_num_samples())
    finally:
        args.train_iters = iterations


def _check_part(
    args: argparse.Namespace,
    part: str,
    blend: Blend,
    indices: dict[str, Index],
    wanted: int | None,
) -> None:
    found = 0
    once = wanted is None or (blend.weights is None and len(blend.prefixes) > 1)
    weights = blend.weights or [1.0]
    for number, prefix in enumerate(blend.prefixes):
        tokens, sequences = _tokens(indices[prefix], args.split, part), indices[prefix].sequences
        given = f"{prefix}: --split {args.split} leaves" if args.split else f"{prefix}: has"
        if not tokens:
            raise DataError(
                f"{given} no tokens for '{part}' (there are {sequences:,} documents with text);"
                " give that part more, or nothing at all"
            )
        here = (tokens - 1) // args.seq_length
        if once and not here:
            raise DataError(
                f"{given} {tokens:,} tokens for '{part}', and a sample of --seq-length"
                f" {args.seq_length} takes {args.seq_length + 1:,}; merge it with other data"
                " (tools/merge_datasets.py)" + ", or give weights" * (wanted is not None)
            )
        if wanted is not None and not once:
            drawn = wanted * args.seq_length * weights[number] / sum(weights)
            _check_epochs(drawn / tokens, f"{given} {tokens:,} tokens for '{part}'")
        found += here
    if once and wanted is not None and found < wanted:
        raise DataError(
            f"{blend.where}: without weights each dataset is used once, which makes {found:,}"
            f" samples of --seq-length {args.seq_length} for '{part}', and the run draws"
            f" {wanted:,}; give a weight before each dataset, or draw fewer"
        )


def _check_epochs(epochs: float, given: str) -> None:
    if epochs > EPOCHS:
        raise DataError(
            f"{given}, which the run would draw {epochs:,.0f} times over, beyond {EPOCHS:,}; give"
            " that part more"
        )


def _tokens(index: Index, split: str | None, part: str) -> int:
    """The tokens of a part of a dataset; without a split all of them."""
    bounds: tuple[int, int] | None = (0, index.sequences)
    if split is not None:
        bounds = bounds_of(parse_split(split), index.sequences)[SPLITS.index(part)]
    first, last = bounds or (0, 0)
    return int(index.lengths[first:last].sum(dtype=np.int64))


def _check_cache_folder(folder: str | None, prefix: str) -> None:
    """Refuse a folder of the index cache that cannot be made; by default it is the prefix."""
    wanted = Path(folder) if folder else Path(prefix, "cache", f"{Dataset.__name__}_indices")
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    what = f"the index cache in {wanted} cannot be written"
    if not there.is_dir():
        raise DataError(f"{what}: {there} is a file; pass another --data-cache-path")
    if there != wanted and not os.access(there, os.W_OK):
        raise DataError(f"{what}: {there} is read-only; pass another --data-cache-path")
