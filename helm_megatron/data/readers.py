"""Documents from every kind of input, in batches that workers parse."""

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helm_megatron.data.errors import DataError
from helm_megatron.data.inputs import TextSource
from helm_megatron.data.lines import MAX_DOCUMENT_BYTES, open_text, read_pieces
from helm_megatron.data.rows import Columns, read_rows

BATCH_BYTES = 1 << 19


@dataclass(frozen=True)
class Position:
    """Where reading goes on: in which source, after how many of its lines or rows and bytes."""

    source: int = 0
    records: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Batch:
    """Consecutive records of one source, not yet parsed.

    kind is "jsonl", "line", "paragraph", "document" (content is their bytes) or "rows" (content
    is a column for each key); first counts lines or rows from 1; consumed is the number of bytes
    of the source read so far, as they lie on disk.
    """

    kind: str
    path: str
    first: int
    content: bytes | Columns
    size: int
    end: Position
    consumed: int


@dataclass
class Parsed:
    """The texts of a batch's documents, in the order of the keys, and the records left out.

    bad holds one line for each record that is no document; empty says where a text is empty.
    """

    documents: list[list[str]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def read_batches(
    sources: Sequence[TextSource],
    keys: Sequence[str] = ("text",),
    sample_by: str = "line",
    start: Position = Position(),
    batch_bytes: int = BATCH_BYTES,
) -> Iterator[Batch]:
    """Yield the sources' records in order, in batches of about `batch_bytes` bytes.

    Args:
        sources: what to read.
        keys: the columns to read of Parquet files and datasets.
        sample_by: what is a document in plain text: a line, a paragraph or a file ("document").
        start: where to begin: the end of an earlier batch.
        batch_bytes: a batch ends with the record that reaches this size.

    Raises:
        DataError: a source cannot be read.
    """
    for number in range(start.source, len(sources)):
        source = sources[number]
        at = start if number == start.source else Position(number)
        if source.format not in ("jsonl", "text"):
            yield from _row_batches(source, keys, at, batch_bytes)
        elif source.format == "text" and sample_by == "document":
            if not at.records:
                yield _whole_file(source, number)
        else:
            kind = "jsonl" if source.format == "jsonl" else sample_by
            blocks = kind == "paragraph"
            for piece in read_pieces(
                Path(source.path), batch_bytes, at.offset, at.records, paragraphs=blocks
            ):
                if kind == "jsonl" and piece.first_line == 1:
                    _check_lines(piece.data, source.path)
                end = Position(number, piece.lines, piece.offset)
                size = len(piece.data)
                yield Batch(
                    kind, source.path, piece.first_line, piece.data, size, end, piece.consumed
                )


def _row_batches(
    source: TextSource, keys: Sequence[str], at: Position, batch_bytes: int
) -> Iterator[Batch]:
    records, consumed = at.records, 0
    for columns, size in read_rows(source, keys, batch_bytes, at.records):
        first, records, consumed = records + 1, records + len(columns[0]), consumed + size
        yield Batch(
            "rows", source.path, first, columns, size, Position(at.source, records), consumed
        )


def _whole_file(source: TextSource, number: int) -> Batch:
    with open_text(Path(source.path)) as (stream, raw):
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
        consumed = raw.tell()
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{source.path}: more than {MAX_DOCUMENT_BYTES:,} bytes are too many for one document;"
            " pass --sample-by line or paragraph"
        )
    end = Position(number, 1, len(data))
    return Batch("document", source.path, 1, data, len(data), end, consumed)


def _check_lines(data: bytes, where: str) -> None:
    """Refuse a file of JSON, by its first lines, that is not an object a line.

    What is only one bad line is left to `parse_batch`.
    """
    first, *others = [line.strip() for line in _lines(data) if line.strip()][:2] or [b""]
    try:
        json.loads(first)
        return
    except (ValueError, RecursionError):
        pass
    if first.startswith(b"["):
        raise DataError(
            f"{where}: a JSON array, not a JSON object a line; jq -c '.[]' makes one of it"
        )
    ends_early = first.startswith(b"{") and not first.endswith(b"}")
    if ends_early and others and not others[0].startswith(b"{"):
        raise DataError(
            f"{where}: JSON over several lines, not a JSON object a line; jq -c . makes one of it"
        )


def _lines(data: bytes) -> list[bytes]:
    return data.removeprefix(codecs.BOM_UTF8).split(b"\n")


def parse_batch(batch: Batch, keys: Sequence[str]) -> Parsed:
    """Parse a batch; plain text counts for every key.

    Blank lines hold no document and are skipped. A record is bad if it is no JSON object, lacks a
    key or has it twice, is null or no text there, is not UTF-8, or is UTF-16 without its mark by
    the looks of it. UTF-8's byte-order mark is no text.
    """
    parsed = Parsed()
    for place, record in _records(batch):
        where = f"{batch.path}:{place}"
        try:
            if batch.kind == "jsonl":
                document = _parse_json(decode(record, where), keys, where)
            elif batch.kind == "rows":
                document = [_column_text(v, k, where) for v, k in zip(record, keys, strict=True)]
            else:
                document = [_plain_text(record, where)] * len(keys)
        except DataError as error:
            parsed.bad.append(str(error))
            continue
        parsed.documents.append(document)
        if not all(document):
            parsed.empty.append(f"{where}: '{keys[document.index('')]}' is empty")
    return parsed


def _records(batch: Batch) -> Iterator[tuple[str | int, Any]]:
    """Yield each record's place, a line or row number, and content."""
    if not isinstance(batch.content, bytes):
        for number, values in enumerate(zip(*batch.content, strict=True), start=batch.first):
            yield f"row {number}", values
    elif batch.kind == "document":
        yield 1, batch.content.removeprefix(codecs.BOM_UTF8)
    elif batch.kind == "paragraph":
        yield from _paragraphs(batch.content, batch.first)
    else:
        # Not splitlines(): a lone \r ends no line.
        for number, line in enumerate(batch.content.split(b"\n"), start=batch.first):
            if number == 1 or batch.kind == "jsonl":  # where files were joined
                line = line.removeprefix(codecs.BOM_UTF8)
            if line and not line.isspace():
                yield number, line.removesuffix(b"\r")


def _paragraphs(data: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    lines: list[bytes] = []
    split = _lines(data) if first == 1 else data.split(b"\n")
    for number, line in enumerate([*split, b""], start=first):
        line = line.removesuffix(b"\r")
        if line.strip():
            lines.append(line)
        elif lines:
            yield number - len(lines), b"\n".join(lines)
            lines = []


def _parse_json(line: str, keys: Sequence[str], where: str) -> list[str]:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of too many digits
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(document, dict):
        array = "an array; jq -c '.[]' makes lines of it"
        found = array if isinstance(document, list) else type(document).__name__
        raise DataError(f'{where}: expected a JSON object such as {{"text": "..."}}, found {found}')
    for key in keys:
        # A count is fast, and misses no key but one that is spelled with escapes.
        if line.count(f'"{key}"') > 1 and _count(line, key) > 1:
            raise DataError(f"{where}: has the key '{key}' more than once")
    return [_text(document, key, where) for key in keys]


def _count(line: str, key: str) -> int:
    """How often an object of JSON has a key."""
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> None:
        nonlocal pairs
        pairs = found  # that of the outermost object comes last

    json.loads(line, object_pairs_hook=keep)
    return [name for name, _ in pairs].count(key)


def _plain_text(data: bytes, where: str) -> str:
    # A NUL is text like any other, but not as every second byte.
    for half in (data[::2], data[1::2]) if len(data) > 3 and b"\0" in data else ():
        if half.count(0) > 0.9 * len(half):
            raise DataError(f"{where}: every second byte is NUL: UTF-16 without its mark?")
    return decode(data, where)


def decode(data: bytes, where: str) -> str:
    """Decode UTF-8; `where` (file:line) goes into the DataError if `data` is something else."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8 at byte {error.start}") from error


def _column_text(value: bytes | None, key: str, where: str) -> str:
    if value is None:
        raise DataError(f"{where}: '{key}' is null")
    return decode(value, where)


def _text(document: dict[str, object], key: str, where: str) -> str:
    if key not in document:
        found = ", ".join(sorted(document)) or "none"
        raise DataError(f"{where}: no key '{key}' (keys here: {found}); see --json-keys")
    text = document[key]
    if text is None:
        raise DataError(f"{where}: '{key}' is null")
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
