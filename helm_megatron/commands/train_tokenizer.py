"""Train a SentencePiece tokenizer on text: any --input of tools/preprocess_data.py.

Example:
    python tools/train_tokenizer.py --input corpus.jsonl.gz --vocab-size 8192 \
        --output-prefix data/corpus

writes data/corpus.model, for `--tokenizer-type SentencePieceTokenizer --tokenizer-model`.
"""

import argparse
import sys

from helm_megatron.commands.options import positive, prefix
from helm_megatron.data.tokenizer_training import MAX_LINE_BYTES, MODEL_TYPES, train_tokenizer
from helm_megatron.errors import HelmError


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help="training text")
    parser.add_argument(
        "--json-keys", nargs="+", default=["text"], help="keys to train on (default: text)"
    )
    parser.add_argument("--vocab-size", type=positive, required=True, help="number of tokens")
    parser.add_argument(
        "--model-type",
        choices=MODEL_TYPES,
        default="bpe",
        help="bpe trains fast (default); unigram is slower to train and faster to apply",
    )
    parser.add_argument(
        "--output-prefix", type=prefix, required=True, help="path of the output without .model"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    return parser.parse_args()


def main() -> None:
    """Run the tool; errors in the input end it with one line and exit code 1."""
    args = parse_args()
    try:
        counts = train_tokenizer(
            args.input,
            args.output_prefix,
            args.vocab_size,
            args.model_type,
            args.json_keys,
            overwrite=args.overwrite,
        )
    except HelmError as error:
        sys.exit(f"error: {error}")
    if counts.too_long:
        print(
            f"warning: {counts.too_long:,} lines longer than {MAX_LINE_BYTES:,} bytes were left"
            " out of the training",
            file=sys.stderr,
        )
    if counts.reserved:
        print(
            f"warning: {counts.reserved:,} lines with U+2585 were left out of the training",
            file=sys.stderr,
        )
    print(f"{args.output_prefix}.model: {args.vocab_size:,} tokens, from {counts.used:,} lines")
