"""The entropy of single tokens: the loss that a model must beat to have used any context."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from helm_megatron.data.errors import DataError

SPLITS = ("train", "valid", "test")
CHUNK = 1 << 24


def unigram_entropy(prefix: str, split: str, part: str = "valid") -> float:
    """Return the empirical unigram entropy, in nats a token, of one part of a .bin/.idx dataset.

    This is the least loss that a context-free model can reach on these tokens, even one fitted to
    them: a stricter yardstick than train-set frequencies scored on the validation set.

    Args:
        prefix: path without .bin/.idx, as for Megatron's --data-path.
        split: weights of train, valid and test as for --split ("95,5,0"); the documents are divided
            exactly as Megatron divides them.
        part: one of `SPLITS`.

    Raises:
        DataError: the files are missing, or the split gives this part no tokens.
    """
    counts = token_counts(prefix, split, part)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def token_counts(prefix: str, split: str | None = None, part: str = "train") -> np.ndarray:
    """How often each token id occurs in a .bin/.idx dataset, up to the largest that does.

    Args:
        prefix: path without .bin/.idx, as for Megatron's --data-path.
        split: as for `unigram_entropy`; if not given, all is counted.
        part: which part of the split.

    Raises:
        DataError: the files are missing, or the split gives this part no tokens.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Transformer Engine, ranks: irrelevant here
        dataset = _open(prefix)
        first, last = 0, len(dataset)
        if split is not None:
            first, last = _split_bounds(split, SPLITS.index(part), len(dataset))
    starts = np.concatenate([[0], np.cumsum(dataset.sequence_lengths, dtype=np.int64)])
    counts = _token_counts(dataset, int(starts[first]), int(starts[last]))
    if split is not None and not counts.any():
        raise DataError(f"{prefix}: --split {split} leaves no tokens for '{part}'")
    return counts


def _open(prefix: str) -> Any:
    for path in (f"{prefix}.bin", f"{prefix}.idx"):
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; make it with tools/preprocess_data.py")
    # It says on import that a CUDA toolkit without a GPU is of no use.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset(prefix)


def _split_bounds(split: str, part: int, documents: int) -> tuple[int, int]:
    """Return the range of documents that Megatron gives to a part of the split."""
    from megatron.core.datasets import blended_megatron_dataset_config as rules

    try:
        bounds = rules.convert_split_vector_to_split_matrix(rules.parse_and_normalize_split(split))
        first, last = (round(bound * documents) for bound in bounds[part] or (0, 0))
    except (AssertionError, ValueError) as error:
        raise DataError(f"--split {split}: expected up to three weights such as 95,5,0") from error
    return first, last


def _token_counts(dataset: Any, start: int, stop: int) -> np.ndarray:
    """Count each id among the tokens [start, stop) of the .bin file."""
    counts = np.zeros(0, np.int64)
    dtype = dataset.index.dtype
    for position in range(start, stop, CHUNK):
        size = min(CHUNK, stop - position)
        tokens = dataset.bin_reader.read(dtype, size, position * np.dtype(dtype).itemsize)
        counts = np.pad(counts, (0, max(0, int(tokens.max()) + 1 - counts.size)))
        counts += np.bincount(tokens, minlength=counts.size)
    return counts
