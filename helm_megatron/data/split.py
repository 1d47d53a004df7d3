"""How --split divides the sequences of a dataset, in their order, into three parts."""

import math
import re

import numpy as np

from helm_megatron.data.errors import DataError

SPLITS = ("train", "valid", "test")
_WEIGHT = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)


def parse_split(split: str) -> list[float]:
    """Return the weights of train, valid and test; those that are not given are zero.

    Stricter than Megatron, which takes every run of digits and dots for a weight, whatever is
    between them; what is taken here it reads alike.

    Raises:
        DataError: it is not one to three numbers, or they are all zero.
    """
    words = [word.strip() for word in split.split(",")]
    wanted = f"--split {split}: expected up to three weights such as 95,5,0"
    if len(words) > len(SPLITS):
        raise DataError(f"{wanted}, not {len(words)}")
    for word in words:
        if not _WEIGHT.fullmatch(word):
            raise DataError(f"{wanted}; '{word}' is no number from 0 up")
    weights = [float(word) for word in words]
    if not 0 < sum(weights) < math.inf:
        raise DataError(f"{wanted}, and not all of them zero")
    return weights + [0.0] * (len(SPLITS) - len(weights))


def bounds_of(weights: list[float], sequences: int) -> list[tuple[int, int] | None]:
    """Return the first sequence of each part and the one after its last, as Megatron rounds them.

    Args:
        weights: of the three parts.
        sequences: how many the dataset has.

    Returns:
        None for a part of weight zero: it does not exist.
    """
    array = np.array(weights, np.float64)
    bounds: list[tuple[int, int] | None] = []
    begin = 0.0
    for share in (array / array.sum()).tolist():
        end = begin + share
        edges = (round(begin * float(sequences)), round(end * float(sequences)))
        bounds.append(edges if end > begin else None)
        begin = end
    return bounds
