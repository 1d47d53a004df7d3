#!/usr/bin/env python
"""Tokenize JSONL files into the .bin/.idx files that Megatron trains on.

Example:
    python tools/preprocess_data.py --input corpus.jsonl.gz --output-prefix data/corpus \
        --tokenizer-type SentencePieceTokenizer --tokenizer-model data/corpus.model --append-eod

writes data/corpus_text_document.bin and .idx; train with `--data-path data/corpus_text_document`.
"""

import argparse
import os
import sys
from pathlib import Path

from helm_megatron.data.encoders import TOKENIZER_TYPES
from helm_megatron.data.errors import DataError
from helm_megatron.data.preprocess import TokenizerSpec, preprocess


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parse_args() -> argparse.Namespace:
    """Parse the command line; flags are named as in Megatron's own tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, help="JSONL files, .gz or plain"
    )
    parser.add_argument(
        "--json-keys", nargs="+", default=["text"], help="keys to tokenize (default: text)"
    )
    parser.add_argument(
        "--output-prefix", type=Path, required=True, help="path of the output without its suffix"
    )
    parser.add_argument("--tokenizer-type", choices=TOKENIZER_TYPES, required=True)
    parser.add_argument(
        "--tokenizer-model", required=True, help=".model file, or Hugging Face folder or name"
    )
    parser.add_argument(
        "--append-eod", action="store_true", help="end every document with the eod token"
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=len(os.sched_getaffinity(0)),
        help="worker processes (default: the CPUs available)",
    )
    parser.add_argument(
        "--log-interval", type=positive, default=10_000, help="documents between progress lines"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    return parser.parse_args()


def main() -> None:
    """Run the tool; errors in the input end it with one line and exit code 1."""
    args = parse_args()
    tokenizer = TokenizerSpec(args.tokenizer_type, args.tokenizer_model, args.append_eod)
    try:
        counts = preprocess(
            args.input,
            args.output_prefix,
            tokenizer,
            args.json_keys,
            workers=args.workers,
            log_interval=args.log_interval,
            overwrite=args.overwrite,
        )
    except DataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    if counts.empty:
        print(f"warning: {counts.empty:,} empty texts", file=sys.stderr)


if __name__ == "__main__":
    main()
