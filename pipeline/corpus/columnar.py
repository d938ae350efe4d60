"""Rows of Parquet and Arrow files as Python values, a few megabytes at a time."""

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.fields import column_of, schema_names, type_of
from pipeline.corpus.values import values
from pipeline.errors import BadFileError

READ_BYTES = 4 << 20
"""Size of the batches, in bytes of text, that Parquet files are read in, about."""
TEXT_TYPES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
Row = tuple[str, dict[str, Any]]
"""Position, and values by column. Strings are bytes: Arrow does not check that they are UTF-8."""


def parquet_rows(
    raw: io.BufferedIOBase, columns: Sequence[str], start: int, stop: int | None
) -> Iterator[Row]:
    """Rows of the row groups from ``start`` to ``stop``.

    Args:
        columns: that are read; the first is the text.

    Raises:
        BadFileError: a column is missing, or the first does not hold strings.
    """
    # With a buffer size, column chunks are streamed instead of read whole.
    parquet = pq.ParquetFile(
        raw, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    )
    _check_columns(parquet.schema_arrow, columns)
    metadata = parquet.metadata
    stop = metadata.num_row_groups if stop is None else stop
    position = sum(metadata.row_group(i).num_rows for i in range(start))
    for i in range(start, stop):
        group = metadata.row_group(i)
        rows = max(1, READ_BYTES * group.num_rows // max(group.total_byte_size, 1))
        batches = parquet.iter_batches(
            min(rows, 8192), row_groups=[i], columns=columns, use_threads=False
        )
        end = position + group.num_rows
        for batch in batches:
            for row in _rows(batch, columns):
                yield str(position), row
                position += 1
        if position != end:
            raise BadFileError(
                f"row group {i} holds {position - end + group.num_rows} rows, and the file's "
                f"footer says {group.num_rows}"
            )


def arrow_rows(
    raw: io.BufferedIOBase, columns: Sequence[str], start: int, stop: int | None
) -> Iterator[Row]:
    """Rows of the record batches from ``start`` to ``stop``.

    Args:
        columns: that are read; the first is the text.

    Raises:
        BadFileError: a column is missing, or the first does not hold strings.
    """
    schema = open_arrow(raw).schema
    _check_columns(schema, columns)
    raw.seek(0)
    # Only wanted columns are read: record batches come whole otherwise.
    outer = {name if name in schema.names else name.partition(".")[0] for name in columns}
    reader = open_arrow(raw, [schema.get_field_index(name) for name in sorted(outer)])
    batches: Iterable[pa.RecordBatch] = reader
    is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
    if is_file:
        stop = reader.num_record_batches if stop is None else stop
        batches = (reader.get_batch(i) for i in range(start, stop))
    for i, batch in enumerate(batches, start):
        _check_buffers(batch)
        for number, row in enumerate(_rows(batch, columns)):
            yield f"{i}:{number}", row
    if not is_file:
        _check_end(raw)


def _check_buffers(batch: pa.RecordBatch) -> None:
    """Check that offsets and indices lie within their buffers: Arrow believes what a file says, and
    a damaged one would make it read elsewhere, or end the process.

    Raises:
        pa.ArrowInvalid: they do not.
    """
    for column in batch.columns:
        if column.type in TEXT_TYPES[:2]:  # a text that is no UTF-8 is wrong alone
            column = column.view(pa.binary() if column.type == pa.string() else pa.large_binary())
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise


def _check_end(raw: io.BufferedIOBase) -> None:
    """
    Raises:
        BadFileError: a stream lacks the mark of its end, which readers do not miss: a writer was
            killed, or the file was cut between two record batches.
    """
    raw.seek(0)
    # Before version 0.15 of Arrow, marks had four bytes instead of eight.
    mark = STREAM_END if raw.read(4) == STREAM_END[:4] else STREAM_END[4:]
    raw.seek(-len(mark), io.SEEK_END)
    if raw.read(len(mark)) != mark:
        raise BadFileError("the stream lacks its end: what was after the last record batch is lost")


def open_arrow(
    raw: io.BufferedIOBase, fields: list[int] | None = None
) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    """A reader of either IPC format: files begin with the format's name, streams do not.

    Args:
        fields: indices of the columns that are read; None: all.
    """
    is_file = raw.read(6) == b"ARROW1"
    raw.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
    return opened(raw, options=options)


def _check_columns(schema: pa.Schema, columns: Sequence[str]) -> None:
    names = list(schema_names(schema))
    for name in columns:
        if names.count(name) != 1:
            many = "more than one" if name in names else "no"
            raise BadFileError(f"{many} column {name!r}; there are {', '.join(names)}")
    text = type_of(schema, columns[0])
    if pa.types.is_dictionary(text):
        text = text.value_type
    if text not in TEXT_TYPES:
        raise BadFileError(f"column {columns[0]!r} is {text}, not a string")


def _rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows as dicts, a few at a time: Python values take more room than Arrow's."""
    for start in range(0, batch.num_rows, 1024):
        piece = batch.slice(start, 1024)
        by_name = {name: values(column_of(piece, name)) for name in columns}
        for i in range(piece.num_rows):
            yield {name: of_column[i] for name, of_column in by_name.items()}
