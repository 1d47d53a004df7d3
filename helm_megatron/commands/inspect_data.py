"""Show what a .bin/.idx dataset holds, and verify that its files are whole.

Example:
    python tools/inspect_data.py --data-path data/corpus_text_document --samples 3

Every pointer, document bound and token is checked, and the hashes of the sidecar, where there is
one. Exit code 1, and a line for each problem, if the dataset is damaged.
"""

import argparse
import random
import sys
from pathlib import Path

from helm_megatron.commands.options import not_negative, positive, seed
from helm_megatron.data.encoders import TOKENIZER_TYPES, build_encoder
from helm_megatron.data.errors import DataError
from helm_megatron.data.inspection import (
    document_lengths,
    histogram_png,
    histogram_text,
    open_index,
    samples,
)
from helm_megatron.data.sidecar import read_sidecar
from helm_megatron.data.verification import problems
from helm_megatron.errors import HelmError


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-path", required=True, help="path without .bin/.idx")
    parser.add_argument(
        "--samples", type=not_negative, default=0, help="show so many random documents"
    )
    parser.add_argument(
        "--sample-tokens", type=positive, default=100, help="tokens shown of each (default: 100)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the choice of samples")
    parser.add_argument("--png", type=Path, help="draw the histogram of lengths into this file")
    parser.add_argument(
        "--tokenizer-type", choices=TOKENIZER_TYPES, help="default: the sidecar's, for samples"
    )
    parser.add_argument("--tokenizer-model", help="likewise")
    parser.add_argument(
        "--vocab-size", type=positive, help="tokens must be below it (the sidecar's)"
    )
    return parser.parse_args()


def show(args: argparse.Namespace) -> None:
    """Print counts, histogram and samples."""
    index = open_index(args.data_path)
    sidecar = read_sidecar(args.data_path)
    lengths = document_lengths(index)
    mean = lengths.tokens / max(1, lengths.documents)
    print(f"{args.data_path}: {lengths.documents:,} documents in {index.sequences:,} sequences")
    print(f"{lengths.tokens:,} tokens ({index.dtype}), {mean:,.1f} a document,", end=" ")
    print(f"{lengths.longest:,} in the longest")
    if sidecar:
        made = sidecar["tokenizer"]
        print(f"tokenizer: {made['type']} {made['model']}, {made['vocab_size']:,} tokens")
    print(histogram_text(lengths))
    if args.png:
        histogram_png(lengths, args.png, f"{Path(args.data_path).name}, {lengths.tokens:,} tokens")
    if not args.samples:
        return
    made = sidecar["tokenizer"] if sidecar else {"type": None, "model": None}
    kind, model = args.tokenizer_type or made["type"], args.tokenizer_model or made["model"]
    if not kind or not model:
        raise DataError("--samples: there is no sidecar; pass --tokenizer-type and -model")
    count = min(args.samples, index.documents)
    numbers = sorted(random.Random(args.seed).sample(range(index.documents), count))
    encoder = build_encoder(kind, model)
    for number, ids, text in samples(args.data_path, index, encoder, numbers, args.sample_tokens):
        print(f"\ndocument {number:,}: {' '.join(map(str, ids))}\n{text}")


def main() -> None:
    """Run the tool; a damaged dataset ends it with exit code 1."""
    args = parse_args()
    try:
        open_index(args.data_path)
        found = list(problems(args.data_path, args.vocab_size))
        if not found:
            show(args)
    except HelmError as error:
        sys.exit(f"error: {error}")
    if found:
        sys.exit("\n".join(f"error: {problem}" for problem in found))
    print("whole: every pointer, bound and token is right")
