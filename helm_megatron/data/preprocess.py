"""Tokenizing JSONL files into the .bin/.idx files of Megatron's IndexedDataset."""

import multiprocessing
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helm_megatron.data.encoders import Encoder, build_encoder
from helm_megatron.data.errors import DataError
from helm_megatron.data.output import staged
from helm_megatron.data.readers import LineBatch, check_inputs, parse_documents, read_batches


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer as Megatron's flags name it, and whether documents end with its eod id."""

    type: str
    model: str
    append_eod: bool = False

    def build(self) -> Encoder:
        """Load the tokenizer; DataError where it cannot be, or has no eod id to append."""
        encoder = build_encoder(self.type, self.model)
        if self.append_eod and encoder.eod is None:
            raise DataError(
                f"{self.model} has no end-of-document token; drop --append-eod or use a tokenizer"
                " with one"
            )
        return encoder


@dataclass(frozen=True)
class EncodedColumn:
    """One key's documents of a batch: their ids end to end (int32) and each document's length."""

    tokens: np.ndarray
    lengths: list[int]


@dataclass(frozen=True)
class EncodedBatch:
    """What a worker makes of a LineBatch: a column for each key, and the bytes it read."""

    columns: list[EncodedColumn]
    bytes_read: int


def encode_batch(
    encoder: Encoder, batch: LineBatch, keys: Sequence[str], append_eod: bool
) -> EncodedBatch:
    """Tokenize a batch of JSONL lines.

    As in Megatron's own tool, an empty document stays empty: it gets no eod.
    """
    documents = parse_documents(batch, keys)
    columns = []
    for column in range(len(keys)):
        ids = encoder.encode([texts[column] for texts in documents]) if documents else []
        if append_eod and encoder.eod is not None:
            ids = [[*document, encoder.eod] if document else document for document in ids]
        lengths = [len(document) for document in ids]
        tokens = np.fromiter((i for document in ids for i in document), np.int32, sum(lengths))
        columns.append(EncodedColumn(tokens, lengths))
    return EncodedBatch(columns, sum(map(len, batch.lines)))


_worker: tuple[Encoder, Sequence[str], bool]


def _start_worker(tokenizer: TokenizerSpec, keys: Sequence[str]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    _worker = tokenizer.build(), keys, tokenizer.append_eod


def _run_worker(batch: LineBatch) -> EncodedBatch:
    encoder, keys, append_eod = _worker
    return encode_batch(encoder, batch, keys, append_eod)


def encode_parallel(
    batches: Iterable[LineBatch], tokenizer: TokenizerSpec, keys: Sequence[str], workers: int
) -> Iterator[EncodedBatch]:
    """Tokenize batches in `workers` processes, keeping their order.

    At most a few batches a worker are in memory at a time, however large the input is.

    Raises:
        DataError: a batch cannot be used, or a worker died.
    """
    # Spawned, not forked: the parent holds torch, whose threads do not survive a fork.
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (tokenizer, keys)
    )
    pending: deque[Future[EncodedBatch]] = deque()
    try:
        for batch in batches:
            pending.append(executor.submit(_run_worker, batch))
            if len(pending) > 3 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died, perhaps for lack of memory; try fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


class Progress:
    """Prints a line to standard error about every `interval` documents, and one at the end."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._next = interval
        self._start = time.monotonic()
        self.documents = self.tokens = self.bytes_read = self.empty = 0

    def add(self, batch: EncodedBatch) -> None:
        """Count a batch."""
        self.documents += len(batch.columns[0].lengths)
        self.tokens += sum(column.tokens.size for column in batch.columns)
        self.empty += sum(column.lengths.count(0) for column in batch.columns)
        self.bytes_read += batch.bytes_read
        if self.documents >= self._next:
            self._next = self.documents + self._interval
            self.show()

    def show(self) -> None:
        """Print documents, tokens and speed so far."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        print(
            f"{self.documents:,} documents, {self.tokens:,} tokens,"
            f" {self.bytes_read / seconds / 1e6:.1f} MB/s, {self.tokens / seconds:,.0f} tokens/s",
            file=sys.stderr,
            flush=True,
        )


def output_paths(output_prefix: Path, key: str) -> tuple[Path, Path]:
    """Return the .bin and .idx paths of a key, named as Megatron's own tool names them."""
    stem = f"{output_prefix.name}_{key}_document"
    return output_prefix.with_name(f"{stem}.bin"), output_prefix.with_name(f"{stem}.idx")


def preprocess(
    inputs: Sequence[Path],
    output_prefix: Path,
    tokenizer: TokenizerSpec,
    keys: Sequence[str] = ("text",),
    *,
    workers: int = 1,
    log_interval: int = 10_000,
    overwrite: bool = False,
) -> Progress:
    """Write `<output_prefix>_<key>_document.bin` and `.idx` for each key.

    The files are byte for byte those of Megatron's tools/preprocess_data.py; they appear only when
    complete. Document i of every key is the i-th non-blank line of the inputs, taken in order.

    Returns:
        The final counts of documents, tokens, bytes and empty texts.

    Raises:
        DataError: input that cannot be read, parsed or tokenized or has no document, or output that
            exists or cannot be written.
    """
    check_inputs(inputs)
    vocab_size = tokenizer.build().vocab_size
    targets = [path for key in keys for path in output_paths(output_prefix, key)]
    with staged(targets, overwrite) as paths:
        builder_class, dtype = _megatron_builder(vocab_size)
        builders = [builder_class(str(path), dtype) for path in paths[::2]]
        progress = Progress(log_interval)
        for batch in encode_parallel(read_batches(inputs), tokenizer, keys, workers):
            for builder, column in zip(builders, batch.columns, strict=True):
                _add_documents(builder, column)
            progress.add(batch)
        if not progress.documents:
            raise DataError(f"{', '.join(map(str, inputs))}: no documents found")
        for builder, path in zip(builders, paths[1::2], strict=True):
            builder.finalize(str(path))
    progress.show()
    return progress


def _megatron_builder(vocab_size: int) -> tuple[Any, Any]:
    # Imported late so that spawned workers, which import this module, never load Megatron.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no Transformer Engine is there: irrelevant here
        from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    return IndexedDatasetBuilder, DType.optimal_dtype(vocab_size)


def _add_documents(builder: Any, column: EncodedColumn) -> None:
    start = 0
    for length in column.lengths:
        builder.add_document(column.tokens[start : start + length], [length] if length else [])
        start += length
