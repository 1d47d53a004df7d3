"""Tokenize text into the .bin/.idx files that Megatron trains on.

Input is JSONL (.jsonl, .json, .ndjson) or plain text (.txt, .text), plain or .gz, .zst, .bz2, .xz;
Parquet; folders and globs of these; a folder of Hugging Face's `Dataset.save_to_disk`; or, with
--dataset, a dataset of the Hugging Face hub, streamed.

Example:
    python tools/preprocess_data.py --input corpus.jsonl.gz --output-prefix data/corpus \
        --tokenizer-type SentencePieceTokenizer --tokenizer-model data/corpus.model --append-eod

writes data/corpus_text_document.bin, .idx and .json (what the tokens are; pretrain_helm.py looks
at it); train with `--data-path data/corpus_text_document`. A run that was stopped goes on with
--resume.
"""

import argparse
import os
import sys

from helm_megatron.commands.options import not_negative, positive, prefix
from helm_megatron.data.encoders import TOKENIZER_TYPES
from helm_megatron.data.inputs import SAMPLE_BY, TextSource, find_sources
from helm_megatron.data.pool import TokenizerSpec
from helm_megatron.data.preprocess import Options, preprocess
from helm_megatron.errors import HelmError


def parse_args() -> argparse.Namespace:
    """Parse the command line; flags are named as in Megatron's own tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_args(parser)
    group = parser.add_argument_group("tokenizer")
    group.add_argument("--tokenizer-type", choices=TOKENIZER_TYPES, required=True)
    group.add_argument(
        "--tokenizer-model",
        required=True,
        help="SentencePiece .model, Hugging Face folder or name, or (TikTokenizer) rank file",
    )
    group.add_argument(
        "--append-eod", action="store_true", help="end every document with the eod token"
    )
    add_output_args(parser)
    return parser.parse_args()


def add_input_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what to read."""
    group = parser.add_argument_group("input")
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", nargs="+", help="files, folders, globs")
    what.add_argument("--dataset", help="a dataset's name on the Hugging Face hub, or its folder")
    group.add_argument("--dataset-config", help="which of the dataset's configurations")
    group.add_argument("--dataset-split", help="which of its splits (--dataset: train)")
    group.add_argument("--dataset-revision", help="which revision: a commit, tag or branch")
    group.add_argument(
        "--json-keys", nargs="+", default=["text"], help="keys or columns (default: text)"
    )
    group.add_argument(
        "--sample-by",
        choices=SAMPLE_BY,
        default="line",
        help="what is a document in plain text: a line (default), a paragraph, or the whole file",
    )
    group.add_argument(
        "--max-bad-records",
        type=not_negative,
        default=0,
        help="stop after so many records that are no JSON, lack a key, are null, empty or not UTF-8"
        " (default: 0, at the first)",
    )


def add_output_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what to write and how."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output-prefix", type=prefix, required=True, help="path of the output without its suffix"
    )
    group.add_argument(
        "--partitions",
        type=positive,
        default=1,
        help="order documents as Megatron's tool does with so many: dealt in turn, then joined",
    )
    group.add_argument(
        "--keep-sequential-samples",
        action="store_true",
        help="with --partitions: keep the order of the input instead",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run that was stopped; with --overwrite, too: begin anew where that was "
        "of other text, tokenizer or options",
    )
    group.add_argument("--overwrite", action="store_true", help="replace existing output")
    group.add_argument(
        "--workers",
        type=positive,
        default=len(os.sched_getaffinity(0)),
        help="worker processes (default: the CPUs available)",
    )
    group.add_argument(
        "--log-interval", type=positive, default=10_000, help="documents between progress updates"
    )


def sources_of(args: argparse.Namespace) -> list[TextSource]:
    """Find what --input or --dataset name."""
    if args.dataset is None:
        return find_sources(args.input, args.dataset_split)
    named = {"config": args.dataset_config, "revision": args.dataset_revision}
    return [TextSource(args.dataset, "hub", split=args.dataset_split or "train", **named)]


def options_of(args: argparse.Namespace) -> Options:
    """Make the options of `preprocess` from the command line."""
    return Options(
        keys=tuple(args.json_keys),
        sample_by=args.sample_by,
        partitions=1 if args.keep_sequential_samples else args.partitions,
        workers=args.workers,
        log_interval=args.log_interval,
        max_bad_records=args.max_bad_records,
        overwrite=args.overwrite,
        resume=args.resume,
    )


def main() -> None:
    """Run the tool; errors in the input end it with one line and exit code 1."""
    args = parse_args()
    tokenizer = TokenizerSpec(args.tokenizer_type, args.tokenizer_model, args.append_eod)
    try:
        counts = preprocess(sources_of(args), args.output_prefix, tokenizer, options_of(args))
    except HelmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume goes on from the last checkpoint, if there is one")
    if counts.bad or counts.empty:
        print(
            f"warning: {counts.bad:,} bad records left out, {counts.empty:,} empty documents",
            file=sys.stderr,
        )
