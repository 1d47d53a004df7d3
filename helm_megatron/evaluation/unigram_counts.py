"""How often each token occurs in training data, as the file that the unigram model reads."""

import json
from pathlib import Path

from helm_megatron.data.entropy import token_counts
from helm_megatron.data.sidecar import read_sidecar


def write_counts(prefix: str, split: str, path: Path) -> None:
    """Count the tokens of the training part of a dataset, and write them with their tokenizer.

    Args:
        prefix: path without .bin/.idx, as for Megatron's --data-path.
        split: as for --split, for example "95,5,0".
        path: the JSON file to write. Its `tokenizer` is None where the dataset has no sidecar.

    Raises:
        DataError: the files are missing or damaged, or the split has no training part.
    """
    counts = token_counts(prefix, split, "train")  # first: it says what is missing
    sidecar = read_sidecar(prefix)
    content = {
        "data": prefix,
        "tokenizer": sidecar["tokenizer"] if sidecar else None,
        "counts": counts.tolist(),
    }
    path.write_text(json.dumps(content), encoding="utf-8")
