"""Reading text files, plain or compressed, in pieces of whole lines."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from helm_megatron.data.encodings import text_of
from helm_megatron.data.errors import DataError

MAX_DOCUMENT_BYTES = 1 << 25


@dataclass(frozen=True)
class Piece:
    """Whole lines of a file: their bytes, the first one's number (from 1), and where they end.

    offset and lines count from the start of the file, uncompressed, to the end of the piece;
    consumed counts bytes of the file as it lies on disk.
    """

    data: bytes
    first_line: int
    offset: int
    lines: int
    consumed: int


@contextmanager
def open_text(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yield a file's uncompressed text, in UTF-8, and the file itself.

    Raises:
        DataError: it cannot be read, its compression is damaged or cut off, or it holds no text.
    """
    kind = path.suffix.lower().removeprefix(".")
    try:
        with path.open("rb") as raw, _uncompressed(raw, kind) as stream:
            yield text_of(stream, str(path)), raw
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise DataError(f"{path}: damaged {kind} file ({error}); make it anew") from error
    except OSError as error:
        if error.errno is None:  # what bz2 and zstd raise for bad data
            raise DataError(f"{path}: damaged {kind} file ({error}); make it anew") from error
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _uncompressed(raw: BinaryIO, kind: str) -> BinaryIO:
    if kind == "gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if kind == "bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if kind == "xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if kind == "zst":
        # Of the libraries for zstd, Arrow's notices a file that was cut off.
        import pyarrow

        stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd")
        return cast(BinaryIO, io.BufferedReader(stream, 1 << 18))
    return raw


def read_pieces(
    path: Path, piece_bytes: int, offset: int = 0, lines: int = 0, *, paragraphs: bool = False
) -> Iterator[Piece]:
    """Yield a file's lines in pieces of about `piece_bytes` bytes.

    Args:
        path: the file; its suffix tells the compression.
        piece_bytes: a piece ends with the line that reaches this size.
        offset: bytes to leave out at the start: where a piece ended.
        lines: the number of lines that they hold.
        paragraphs: end pieces at blank lines only.

    Raises:
        DataError: the file cannot be read, is damaged, or has a line (or paragraph) that is longer
            than `MAX_DOCUMENT_BYTES`.
    """
    with open_text(path) as (stream, raw):
        _skip(stream, offset)
        while data := stream.read(piece_bytes):
            if not data.endswith(b"\n"):
                data += _line(stream, f"{path}:{lines + data.count(b'\n') + 1}")
            if paragraphs:
                data += _rest_of_paragraph(stream, f"{path}:{lines + 1}")
            first, count = lines + 1, data.count(b"\n") + (not data.endswith(b"\n"))
            offset, lines = offset + len(data), lines + count
            yield Piece(data, first, offset, lines, raw.tell())


def _skip(stream: BinaryIO, offset: int) -> None:
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
        stream.seek(offset)
        return
    while offset and (data := stream.read(min(offset, 1 << 20))):
        offset -= len(data)


def _line(stream: BinaryIO, where: str) -> bytes:
    line = stream.readline(MAX_DOCUMENT_BYTES)
    if len(line) == MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
        raise DataError(f"{where}: a line of more than {MAX_DOCUMENT_BYTES:,} bytes; split it")
    return line


def _rest_of_paragraph(stream: BinaryIO, where: str) -> bytes:
    lines: list[bytes] = []
    size = 0
    while (line := _line(stream, where)).strip():
        lines.append(line)
        size += len(line)
        if size > MAX_DOCUMENT_BYTES:
            raise DataError(f"{where}: a paragraph of more than {MAX_DOCUMENT_BYTES:,} bytes")
    return b"".join([*lines, line])
