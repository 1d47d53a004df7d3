"""Tokenizing batches in worker processes, in order and in bounded memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain

import numpy as np

from helm_megatron.data.encoders import Encoder, build_encoder
from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import optimal_dtype
from helm_megatron.data.readers import Batch, Position, parse_batch

# Text that is read but not yet written; about this many tokens come back for it.
MAX_BYTES_IN_FLIGHT = 1 << 26


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
    """One key's documents of a batch: their ids end to end as they are stored, and each
    document's length (int32)."""

    tokens: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class EncodedBatch:
    """What a worker makes of a Batch: a column for each key, and what it found wrong.

    end and consumed say how far in which source reading was, size how many bytes there were.
    """

    columns: list[EncodedColumn]
    bad: list[str]
    empty: list[str]
    size: int
    end: Position
    consumed: int


def encode_batch(
    encoder: Encoder, batch: Batch, keys: Sequence[str], append_eod: bool
) -> EncodedBatch:
    """Tokenize a batch.

    As in Megatron's own tool, an empty document stays empty: it gets no eod.
    """
    parsed = parse_batch(batch, keys)
    documents, bad = [], parsed.bad
    for document in parsed.documents:
        reasons = filter(None, map(encoder.refusal, document))
        if reason := next(reasons, None):
            bad.append(f"{batch.path}: after line or row {batch.first}: {reason}")
        else:
            documents.append(document)
    columns = []
    for column in range(len(keys)):
        ids = encoder.encode([texts[column] for texts in documents]) if documents else []
        if append_eod and encoder.eod is not None:
            ids = [[*document, encoder.eod] if document else document for document in ids]
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        total = int(lengths.sum(dtype=np.int64))
        tokens = np.fromiter(chain.from_iterable(ids), optimal_dtype(encoder.vocab_size), total)
        columns.append(EncodedColumn(tokens, lengths))
    return EncodedBatch(columns, bad, parsed.empty, batch.size, batch.end, batch.consumed)


_worker: tuple[Encoder, Sequence[str], bool]


def _start_worker(tokenizer: TokenizerSpec, keys: Sequence[str]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = tokenizer.build(), keys, tokenizer.append_eod


def _end_with_parent() -> None:
    """Workers of a parent that was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_worker(batch: Batch) -> EncodedBatch:
    encoder, keys, append_eod = _worker
    return encode_batch(encoder, batch, keys, append_eod)


def encode_parallel(
    batches: Iterable[Batch], tokenizer: TokenizerSpec, keys: Sequence[str], workers: int
) -> Iterator[EncodedBatch]:
    """Tokenize batches in `workers` processes, keeping their order.

    At most a few batches a worker, and `MAX_BYTES_IN_FLIGHT`, are in memory at a time, however
    large the input is.

    Raises:
        DataError: a batch cannot be used, or a worker died.
    """
    # Spawned, not forked: threads of the parent's libraries do not survive a fork.
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (tokenizer, keys)
    )
    pending: deque[tuple[int, Future[EncodedBatch]]] = deque()
    in_flight = 0
    try:
        for batch in batches:
            pending.append((batch.size, executor.submit(_run_worker, batch)))
            in_flight += batch.size
            while pending and (len(pending) > 3 * workers or in_flight > MAX_BYTES_IN_FLIGHT):
                size, future = pending.popleft()
                in_flight -= size
                yield future.result()
        while pending:
            yield pending.popleft()[1].result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died, perhaps for lack of memory; try fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
