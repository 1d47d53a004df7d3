#!/usr/bin/env python
"""Preprocess as Megatron-LM's own tool does: documents one by one through a pool of processes.

The peer of benchmarks/preprocess.py; see there. It takes the flags of tools/preprocess_data.py that
it needs.
"""

import argparse
import json
import multiprocessing
from typing import Any

from helm_megatron import megatron_patches

megatron_patches.apply()

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder  # noqa: E402
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer  # noqa: E402
from megatron.training.config.training_config import TokenizerConfig  # noqa: E402

# Lines that go to a worker at once, in upstream's tool.
CHUNK = 32

_tokenizer: Any
_append_eod: bool


def tokenizer_of(args: argparse.Namespace) -> Any:
    """Build Megatron's tokenizer."""
    flags = TokenizerConfig(
        tokenizer_type=args.tokenizer_type,
        tokenizer_model=args.tokenizer_model,
        pad_vocab_size=False,
    )
    return build_tokenizer(argparse.Namespace(**vars(flags)))


def start_worker(args: argparse.Namespace) -> None:
    """Load the tokenizer."""
    global _tokenizer, _append_eod
    _tokenizer, _append_eod = tokenizer_of(args), args.append_eod


def encode(line: str) -> list[int]:
    """Tokenize one document."""
    ids = list(_tokenizer.tokenize(json.loads(line)["text"]))
    if ids and _append_eod:
        ids.append(_tokenizer.eod)
    return ids


def main() -> None:
    """Write `<output prefix>_text_document.bin` and `.idx`."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("input", "tokenizer-type", "tokenizer-model", "output-prefix"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--append-eod", action="store_true")
    args = parser.parse_args()
    dtype = DType.optimal_dtype(tokenizer_of(args).vocab_size)
    prefix = f"{args.output_prefix}_text_document"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    pool = multiprocessing.get_context("fork").Pool(args.workers, start_worker, [args])
    with open(args.input, encoding="utf-8") as lines, pool:
        for ids in pool.imap(encode, lines, CHUNK):
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


if __name__ == "__main__":
    main()
