"""The entropy of single tokens: the loss that a model must beat to have used any context."""

import numpy as np

from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import map_tokens, paths_of
from helm_megatron.data.split import SPLITS, bounds_of, parse_split
from helm_megatron.data.verification import open_whole

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
        DataError: the files are missing or damaged, or the split gives this part no tokens.
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
        DataError: the files are missing or damaged, or the split gives this part no tokens.
    """
    index = open_whole(prefix)
    tokens = map_tokens(paths_of(prefix)[0], index.dtype)
    first, last = 0, index.sequences
    if split is not None:
        bounds = bounds_of(parse_split(split), index.sequences)[SPLITS.index(part)]
        first, last = bounds or (0, 0)
    starts = np.concatenate([[0], np.cumsum(index.lengths, dtype=np.int64)])
    counts = _token_counts(prefix, tokens[int(starts[first]) : int(starts[last])])
    if split is not None and not counts.any():
        raise DataError(f"{prefix}: --split {split} leaves no tokens for '{part}'")
    return counts


def _token_counts(prefix: str, tokens: np.ndarray) -> np.ndarray:
    """Count each id."""
    counts = np.zeros(0, np.int64)
    for start in range(0, tokens.size, CHUNK):
        chunk = tokens[start : start + CHUNK]
        if int(chunk.min()) < 0:
            raise DataError(f"{prefix}: has negative token ids; tools/inspect_data.py says more")
        counts = np.pad(counts, (0, max(0, int(chunk.max()) + 1 - counts.size)))
        counts += np.bincount(chunk, minlength=counts.size)
    return counts
