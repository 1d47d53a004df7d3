"""Reading documents from JSONL and text files, plain or gzip."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from helm_megatron.data.errors import DataError

BATCH_BYTES = 1 << 19


@dataclass(frozen=True)
class LineBatch:
    """Consecutive lines of one file, undecoded; `first_line` counts from 1."""

    path: str
    first_line: int
    lines: list[bytes]


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def check_inputs(paths: Iterable[Path]) -> None:
    """Raise DataError for the first path that is no file, before any long work begins."""
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file; see --input")


def read_batches(paths: Iterable[Path], batch_bytes: int = BATCH_BYTES) -> Iterator[LineBatch]:
    """Yield the files' lines in order, in batches of about `batch_bytes` bytes.

    Raises:
        DataError: a file cannot be read or is a damaged gzip file.
    """
    for path in paths:
        lines: list[bytes] = []
        first_line, size = 1, 0
        try:
            with _open(path) as stream:
                for line in stream:
                    lines.append(line)
                    size += len(line)
                    if size >= batch_bytes:
                        yield LineBatch(str(path), first_line, lines)
                        first_line += len(lines)
                        lines, size = [], 0
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: damaged gzip file ({error}); make it anew") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        if lines:
            yield LineBatch(str(path), first_line, lines)


def parse_documents(batch: LineBatch, keys: Sequence[str]) -> list[list[str]]:
    """Parse a batch of JSONL: per document its texts, in the order of `keys`.

    Blank lines hold no document and are skipped.

    Raises:
        DataError: a line is no JSON object, lacks a key, or has something other than text there.
    """
    documents = []
    for number, line in enumerate(batch.lines, start=batch.first_line):
        if line.isspace():
            continue
        where = f"{batch.path}:{number}"
        try:
            document = json.loads(decode(line, where))
        except json.JSONDecodeError as error:
            reason = f"{error.msg} at column {error.colno}"
            raise DataError(f"{where}: not valid JSON: {reason}") from error
        if not isinstance(document, dict):
            raise DataError(
                f'{where}: expected a JSON object such as {{"text": "..."}},'
                f" found {type(document).__name__}"
            )
        documents.append([_text(document, key, where) for key in keys])
    return documents


def decode(line: bytes, where: str) -> str:
    """Decode UTF-8; `where` (file:line) goes into the DataError if `line` is something else."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8 at byte {error.start}") from error


def _text(document: dict[str, object], key: str, where: str) -> str:
    if key not in document:
        found = ", ".join(sorted(document)) or "none"
        raise DataError(f"{where}: no key '{key}' (keys here: {found}); see --json-keys")
    text = document[key]
    if not isinstance(text, str):
        raise DataError(f"{where}: '{key}' is {type(text).__name__}, not a string")
    try:
        # JSON can spell half of a surrogate pair, which no tokenizer takes.
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: '{key}' has an unpaired surrogate at character {error.start}"
        ) from error
    return text
