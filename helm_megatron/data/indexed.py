"""Megatron's .bin/.idx files, read and written in pieces of bounded size and without Megatron.

The .bin file holds token ids end to end. The .idx file tells sequences apart: a header (magic,
version, type of a token, number of sequences, number of document bounds), then the length of each
sequence (int32), its byte offset (int64) and the document bounds (int64): document d is made of
the sequences bounds[d] to bounds[d + 1] - 1. Datasets of several modalities end with a mode (int8)
for each sequence. See `megatron.core.datasets.indexed_dataset`.
"""

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from helm_megatron.data.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
CHUNK = 1 << 20

Chunks = Callable[[], Iterator[np.ndarray]]


def optimal_dtype(vocab_size: int) -> np.dtype:
    """Return the type in which Megatron stores the tokens of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def paths_of(prefix: str | Path) -> tuple[Path, Path]:
    """Return the .bin and .idx paths of a dataset named as for --data-path."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx")


def write_index(stream: BinaryIO, dtype: np.dtype, lengths: Chunks, bounds: Chunks) -> None:
    """Write an .idx file.

    Args:
        stream: where to.
        dtype: type of a token in the .bin file.
        lengths: gives the tokens of each sequence, in chunks, each time it is called.
        bounds: gives the document bounds, 0 first, likewise.
    """
    code = next(code for code, known in DTYPES.items() if known == dtype.type)
    sequences = sum(chunk.size for chunk in lengths())
    documents = sum(chunk.size for chunk in bounds())
    stream.write(HEADER.pack(MAGIC, VERSION, code, sequences, documents))
    for chunk in lengths():
        stream.write(chunk.astype("<i4").tobytes())
    end = 0
    for chunk in lengths():
        ends = end + np.cumsum(chunk, dtype=np.int64)
        starts = np.concatenate([np.array([end], np.int64), ends[:-1]])[: chunk.size]
        stream.write((starts * dtype.itemsize).astype("<i8").tobytes())
        end = int(ends[-1]) if chunk.size else end
    for chunk in bounds():
        stream.write(chunk.astype("<i8").tobytes())


@dataclass(frozen=True)
class Index:
    """A mapped .idx file whose header fits its size. The arrays are views into the file."""

    path: Path
    dtype: np.dtype
    sequences: int
    documents: int
    _buffer: Any

    def _array(self, dtype: str, count: int, offset: int) -> np.ndarray:
        return np.frombuffer(self._buffer, dtype, count, HEADER.size + offset)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int32."""
        return self._array("<i4", self.sequences, 0)

    @cached_property
    def pointers(self) -> np.ndarray:
        """Byte offset of each sequence in the .bin file, int64."""
        return self._array("<i8", self.sequences, 4 * self.sequences)

    @cached_property
    def bounds(self) -> np.ndarray:
        """First sequence of each document, and at the end the number of sequences, int64."""
        return self._array("<i8", self.documents + 1, 12 * self.sequences)

    def document(self, tokens: np.ndarray, number: int) -> np.ndarray:
        """Return the tokens of a document; `tokens` are those of the .bin file."""
        first, last = int(self.bounds[number]), int(self.bounds[number + 1])
        start = int(self.pointers[first]) // self.dtype.itemsize if first < last else 0
        return tokens[start : start + int(self.lengths[first:last].sum())]


def read_index(path: Path) -> Index:
    """Map an .idx file.

    Raises:
        DataError: it cannot be read, is no .idx file, or is shorter or longer than its header says.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size < HEADER.size:
                raise DataError(f"{path}: {size} bytes are too few for an .idx file")
            buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    magic, version, code, sequences, bounds = HEADER.unpack_from(buffer)
    if magic != MAGIC:
        raise DataError(f"{path}: not an .idx file of Megatron's")
    if version != VERSION:
        raise DataError(f"{path}: version {version} of the format is not known")
    if code not in DTYPES:
        raise DataError(f"{path}: no type of token has the code {code}")
    if bounds < 1:
        raise DataError(f"{path}: has no document bounds")
    plain = HEADER.size + 12 * sequences + 8 * bounds
    if size not in (plain, plain + sequences):
        raise DataError(
            f"{path}: has {size:,} bytes, where {sequences:,} sequences in {bounds - 1:,} documents"
            f" take {plain:,}: it was cut off or damaged"
        )
    return Index(path, np.dtype(DTYPES[code]), sequences, bounds - 1, buffer)


def map_tokens(path: Path, dtype: np.dtype) -> np.ndarray:
    """Map the tokens of a .bin file; DataError if it cannot be read or ends within a token."""
    try:
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise DataError(f"{path}: {size:,} bytes are no whole number of {dtype} tokens")
        return np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
