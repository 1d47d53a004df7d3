"""Whether a dataset's files are whole: every pointer, bound and token, and the stored hashes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import CHUNK, Index, map_tokens, paths_of, read_index
from helm_megatron.data.inspection import open_index
from helm_megatron.data.sidecar import describe_file, read_sidecar, sidecar_path


def open_whole(prefix: str | Path) -> Index:
    """Read the index of a dataset whose files fit each other; its tokens are not looked at.

    Raises:
        DataError: a file is not there, or index and .bin file are at odds.
    """
    index = open_index(prefix)
    if index.dtype.kind == "f":
        raise DataError(f"{index.path}: holds {index.dtype}, which are no token ids")
    for problem in index_problems(index):
        raise DataError(problem)
    data = paths_of(prefix)[0]
    size = data.stat().st_size
    expected = int(index.lengths.sum(dtype=np.int64)) * index.dtype.itemsize
    if size != expected:
        raise DataError(
            f"{data}: has {size:,} bytes, not {expected:,}, as {index.path} counts: it was cut off"
            " or damaged"
        )
    return index


def problems(prefix: str | Path, vocab_size: int | None = None) -> Iterator[str]:
    """Yield one line for each thing that is wrong with a dataset; nothing if it is whole.

    With a sidecar any change of a byte is found, by the hashes there. Without one, every change
    that leaves index and binary at odds is, but not another token below `vocab_size` (default: the
    sidecar's) or other documents made of the same sequences.
    """
    data, index = paths_of(prefix)
    sidecar = None
    try:
        sidecar = read_sidecar(prefix)
        if sidecar:
            yield from _against_sidecar(prefix, sidecar)
            vocab_size = vocab_size or sidecar["tokenizer"]["vocab_size"]
    except DataError as error:
        yield str(error)
    try:
        made = read_index(index)
        yield from index_problems(made)
        tokens = map_tokens(data, made.dtype)
    except DataError as error:
        yield str(error)
        return
    except OSError as error:
        yield f"{prefix}: cannot be read: {error.strerror}"
        return
    yield from _token_problems(data, made, tokens, vocab_size)


def _against_sidecar(prefix: str | Path, sidecar: dict[str, Any]) -> Iterator[str]:
    for path, kind in zip(paths_of(prefix), ("bin", "idx"), strict=True):
        try:
            found, stored = describe_file(path), sidecar["files"][kind]
        except OSError as error:
            yield f"{path}: cannot be read: {error.strerror}"
            continue
        for name, value in found.items():
            if stored.get(name) != value:
                shown = f"{sidecar_path(prefix)} says {stored.get(name)}"
                yield f"{path}: is not the file that was written: {name} is {value}, {shown}"


def index_problems(index: Index) -> Iterator[str]:
    """Yield what is wrong with lengths, pointers and bounds, which follow from one another."""
    end, itemsize = 0, index.dtype.itemsize
    for start in range(0, index.sequences, CHUNK):
        lengths = index.lengths[start : start + CHUNK].astype(np.int64)
        if (bad := np.flatnonzero(lengths <= 0)).size:
            number = start + int(bad[0])
            yield f"{index.path}: sequence {number:,} has {index.lengths[number]:,} tokens"
            return
        ends = end + np.cumsum(lengths)
        expected = (ends - lengths) * itemsize
        pointers = index.pointers[start : start + CHUNK]
        if (bad := np.flatnonzero(pointers != expected)).size:
            number = start + int(bad[0])
            yield (
                f"{index.path}: sequence {number:,} begins at byte {int(index.pointers[number]):,},"
                f" where the lengths before it say {int(expected[bad[0]]):,}"
            )
            return
        end = int(ends[-1])
    last = 0
    for start in range(0, index.documents + 1, CHUNK):
        bounds = index.bounds[start : start + CHUNK]
        steps = np.diff(bounds, prepend=last)
        if (bad := np.flatnonzero(steps < 0)).size or (start == 0 and bounds[0] != 0):
            number = start + int(bad[0]) if bad.size else 0
            first = int(index.bounds[number])
            yield f"{index.path}: document {number:,} begins with sequence {first:,}"
            return
        last = int(bounds[-1])
    if last != index.sequences:
        yield (
            f"{index.path}: the last document ends with sequence {last:,}, but there are"
            f" {index.sequences:,}"
        )


def _token_problems(
    path: Path, index: Index, tokens: np.ndarray, vocab_size: int | None
) -> Iterator[str]:
    expected = int(index.lengths.sum(dtype=np.int64))
    if tokens.size != expected:
        yield f"{path}: has {tokens.size:,} tokens, where {index.path} counts {expected:,}"
    if index.dtype.kind == "f":
        yield f"{index.path}: holds {index.dtype}, which are no token ids"
        return
    high = vocab_size or np.iinfo(index.dtype).max + 1
    for start in range(0, tokens.size, CHUNK):
        chunk = tokens[start : start + CHUNK]
        if int(chunk.max()) >= high or int(chunk.min()) < 0:
            number = start + int(np.flatnonzero((chunk >= high) | (chunk < 0))[0])
            token = int(tokens[number])
            yield f"{path}: token {number:,} is {token:,}, not one of the vocabulary's {high:,}"
            return
