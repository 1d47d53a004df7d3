"""Reading columns of text from Parquet files and Hugging Face datasets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from helm_megatron.data.errors import DataError
from helm_megatron.data.inputs import TextSource

if TYPE_CHECKING:
    import pyarrow

Columns = list[list[bytes | None]]
# So few that even long documents do not fill the memory.
ROWS = 32


def read_rows(
    source: TextSource, keys: Sequence[str], piece_bytes: int, start: int
) -> Iterator[Any]:
    """Yield `(columns, bytes of text)` of the rows from `start` on; a column for each key.

    Values stay undecoded: a worker tells which of them is not UTF-8.

    Raises:
        DataError: the source cannot be read, lacks a column, or one does not hold text.
    """
    read = _parquet if source.format == "parquet" else _dataset
    pending: Columns = [[] for _ in keys]
    size = 0
    for table in read(source, keys, start):
        for column, key in zip(pending, keys, strict=True):
            values = _as_bytes(table.column(key), key, source)
            column += values
            size += sum(len(value) for value in values if value)
        if size >= piece_bytes:
            yield pending, size
            pending, size = [[] for _ in keys], 0
    if pending[0]:
        yield pending, size


def _parquet(source: TextSource, keys: Sequence[str], start: int) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Buffered, or a row group's columns, however long, would be read at once.
        with parquet.ParquetFile(source.path, pre_buffer=False, buffer_size=1 << 20) as file:
            _check_columns(file.schema_arrow.names, keys, source)
            first, passed = 0, 0
            while first < file.num_row_groups and passed + _rows(file, first) <= start:
                passed += _rows(file, first)
                first += 1
            groups = list(range(first, file.num_row_groups))
            if not groups:  # Arrow before 20 does not take an empty list
                return
            for batch in file.iter_batches(ROWS, row_groups=groups, columns=list(keys)):
                left_out = max(0, start - passed)
                passed += batch.num_rows
                if left_out < batch.num_rows:
                    yield batch.slice(left_out)
    except (pyarrow.ArrowException, OSError) as error:
        reason = textwrap.shorten(str(error), 200)
        raise DataError(f"{source.path}: cannot be read as Parquet: {reason}") from error


def _rows(file: Any, group: int) -> int:
    return file.metadata.row_group(group).num_rows


def _dataset(source: TextSource, keys: Sequence[str], start: int) -> Iterator[pyarrow.Table]:
    try:
        dataset = _split(source)
        if dataset.column_names:
            _check_columns(dataset.column_names, keys, source)
        rows = dataset.select_columns(list(keys)).with_format("arrow")
        if source.format == "disk" and start >= len(rows):
            return  # what is no stream cannot skip all of its rows
        yield from (rows.skip(start) if start else rows).iter(ROWS)
    except DataError:
        raise
    except Exception as error:  # its own, the hub's and those of every file format
        reason = textwrap.shorten(str(error), 300)
        raise DataError(f"{source.path}: cannot be read as a dataset: {reason}") from error


def _split(source: TextSource) -> Any:
    import datasets

    datasets.disable_progress_bars()
    if source.format == "disk":
        dataset = datasets.load_from_disk(source.path)
    else:
        name = {"path": source.path, "name": source.config, "revision": source.revision}
        dataset = datasets.load_dataset(**name, split=source.split or "train", streaming=True)
    if isinstance(dataset, dict):
        splits = ", ".join(dataset)
        if source.split not in dataset:
            raise DataError(f"{source.path}: pass --dataset-split, one of {splits}")
        dataset = dataset[source.split]
    return dataset


def _check_columns(names: Sequence[str], keys: Sequence[str], source: TextSource) -> None:
    for key in keys:
        if key not in names:
            found = ", ".join(names)
            raise DataError(f"{source.path}: no column '{key}' (columns: {found}); see --json-keys")
        if (count := list(names).count(key)) > 1:
            raise DataError(f"{source.path}: has {count} columns '{key}'; rename all but one")


def _as_bytes(column: Any, key: str, source: TextSource) -> list[bytes | None]:
    import pyarrow

    if pyarrow.types.is_null(column.type):
        return [None] * len(column)
    if not _is_textual(column.type):
        raise DataError(f"{source.path}: column '{key}' holds {column.type}, not text")
    return column.cast(pyarrow.large_binary()).to_pylist()


def _is_textual(kind: Any) -> bool:
    """Whether values of a type are texts, or bytes that may be: some writers know no other type."""
    import pyarrow

    if isinstance(kind, pyarrow.BaseExtensionType):
        kind = kind.storage_type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    names = "string large_string string_view binary large_binary binary_view fixed_size_binary"
    return any(getattr(pyarrow.types, f"is_{name}")(kind) for name in names.split())
