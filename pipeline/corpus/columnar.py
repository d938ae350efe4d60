"""Rows of Parquet and Arrow files as Python values, a few megabytes at a time.

What a file states about its sizes is looked at before it is decoded: see
:mod:`pipeline.corpus.headers.parquet_footer`, :mod:`pipeline.corpus.headers.parquet_pages` and
:mod:`pipeline.corpus.headers.ipc_messages`.
"""

import functools
import io
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.batch_rows import batch_rows
from pipeline.corpus.fields import listed, schema_names, type_of
from pipeline.corpus.headers.ipc_messages import MessageWatch, check_start
from pipeline.corpus.headers.limits import most_bytes, most_rows
from pipeline.corpus.headers.parquet_footer import Footer, leaves_of
from pipeline.corpus.headers.parquet_pages import PageWatch
from pipeline.corpus.row_bytes import is_plain
from pipeline.errors import BadFileError

READ_BYTES = 4 << 20
"""Size of the batches, in bytes of text, that Parquet files are read in, about."""
MOST_ROWS, ODD_ROWS = 8192, 64
"""Rows of a batch: at most, and too few to be a file's habit."""
BUFFER_BYTES = 1 << 20
"""Bytes of a column chunk that are read from the file at a time."""
ALL_BUFFERS_BYTES = 64 << 20
TEXT_TYPES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
Row = tuple[str, dict[str, Any] | str]
"""Position, and values by column or what is wrong with the row. Strings are bytes: Arrow does not
check that they are UTF-8."""


def parquet_rows(
    raw: io.BufferedIOBase,
    columns: Sequence[str],
    start: int,
    stop: int | None,
    max_document_bytes: int,
    numbers: Collection[str] = (),
) -> Iterator[Row]:
    """Rows of the row groups from ``start`` to ``stop``.

    Args:
        columns: that are read; the first is the text.
        max_document_bytes: longer texts are not made.
        numbers: columns whose lists of numbers are given as arrays.

    Raises:
        BadFileError: a column is missing, the first does not hold strings, or the file states more
            than may be decoded.
    """
    watch = PageWatch(raw, most_bytes(max_document_bytes))
    footer = Footer(raw)
    metadata = footer.parquet.metadata
    plain = _check_columns(footer.parquet.schema_arrow, columns)
    leaves = leaves_of(metadata, columns)

    @functools.cache  # most files are read in one way
    def opened(dictionaries: tuple[str, ...]) -> pq.ParquetFile:
        return pq.ParquetFile(
            watch,
            metadata=metadata,
            # With a buffer size, column chunks are streamed instead of read whole.
            buffer_size=max(1 << 13, min(BUFFER_BYTES, ALL_BUFFERS_BYTES // len(leaves))),
            pre_buffer=False,
            page_checksum_verification=True,
            read_dictionary=dictionaries,
        )

    stop = metadata.num_row_groups if stop is None else stop
    position = sum(metadata.row_group(i).num_rows for i in range(start))
    for i in range(start, stop):
        group = metadata.row_group(i)
        end = position + group.num_rows
        rows = max(1, READ_BYTES * group.num_rows // max(group.total_byte_size, 1))
        # What one row group needs, the next is likely to need, unless it was something odd.
        usual = watch.rows if watch.rows >= ODD_ROWS else MOST_ROWS
        places = footer.places(i, leaves)
        watch.begin(places, min(rows, usual))
        # A row's list may repeat one string any number of times.
        repeating = (p for p in places if p.leaf.is_list and p.leaf.is_text and not p.in_deltas)
        parquet = opened(tuple(place.leaf.path for place in repeating))
        for batch in _batches(parquet, watch, i, columns):
            for row in batch_rows(batch, columns, max_document_bytes, numbers, plain=plain):
                yield str(position), row
                position += 1
            del batch  # before the next is decoded
        if position != end:
            raise BadFileError(
                f"row group {i} holds {position - end + group.num_rows} rows, and the file's "
                f"footer says {group.num_rows}"
            )


def _batches(
    parquet: Any, watch: PageWatch, number: int, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The record batches of a row group; if they turn out to be too large, they are smaller from
    there on.

    Raises:
        BadFileError: the row group states more than may be decoded.
    """
    done = 0
    while True:
        row = 0
        batches = parquet.iter_batches(
            watch.rows, row_groups=[number], columns=columns, use_threads=False
        )
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # whatever Arrow makes of the watch's
                if watch.problem:
                    raise BadFileError(watch.problem) from error
                if not watch.fewer_rows:
                    raise
                watch.begin_again()
                break
            if batch is None:
                return
            watch.next_batch()
            skipped, row = max(0, done - row), row + batch.num_rows
            if row > done:
                yield batch.slice(skipped)
                done = row
            del batch


def arrow_rows(
    raw: io.BufferedIOBase,
    columns: Sequence[str],
    start: int,
    stop: int | None,
    max_document_bytes: int,
    numbers: Collection[str] = (),
) -> Iterator[Row]:
    """Rows of the record batches from ``start`` to ``stop``.

    Args:
        columns: that are read; the first is the text.
        max_document_bytes: longer texts are not made.
        numbers: columns whose lists of numbers are given as arrays.

    Raises:
        BadFileError: a column is missing, the first does not hold strings, or the file states more
            than may be decoded.
    """
    schema = open_arrow(raw).schema
    plain = _check_columns(schema, columns)
    # Only wanted columns are read: record batches come whole otherwise.
    outer = {name if name in schema.names else name.partition(".")[0] for name in columns}
    wanted = sorted(schema.get_field_index(name) for name in outer)
    rows = most_rows(raw.seek(0, os.SEEK_END))
    watch = MessageWatch(raw, most_bytes(max_document_bytes), rows)
    reader = open_arrow(raw, wanted)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        batches = _of_file(reader, watch, schema, wanted, start, stop)
    else:
        batches = _of_stream(raw, reader, watch, schema, wanted)
    for i, batch in enumerate(batches, start):
        _check_buffers(batch)
        for number, row in enumerate(
            batch_rows(batch, columns, max_document_bytes, numbers, plain=plain)
        ):
            yield f"{i}:{number}", row
        del batch  # before the next is decoded


def _of_file(
    reader: Any,
    watch: MessageWatch,
    schema: pa.Schema,
    wanted: list[int],
    start: int,
    stop: int | None,
) -> Iterator[pa.RecordBatch]:
    watch.find_messages()
    watch.check_dictionaries(schema)
    for i in range(start, reader.num_record_batches if stop is None else stop):
        watch.check_batch(i, schema, wanted)
        yield reader.get_batch(i)


def _of_stream(
    raw: io.BufferedIOBase, reader: Any, watch: MessageWatch, schema: pa.Schema, wanted: list[int]
) -> Iterator[pa.RecordBatch]:
    while True:
        watch.check_next(schema, wanted)
        try:
            yield reader.read_next_batch()
        except StopIteration:
            break
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
    """Look at what follows the last record batch of a stream, at which ``raw`` stands.

    Raises:
        BadFileError: it lacks the mark of its end, which readers do not miss: a writer was killed,
            or the file was cut between two record batches. Or more follows than the stream.
    """
    more = raw.seek(0, io.SEEK_CUR) - raw.seek(0, io.SEEK_END)
    if more:
        raise BadFileError(
            f"{-more:,} bytes follow the end of the stream and are not read: if streams were put "
            "one behind the other, give each a file of its own"
        )
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

    Raises:
        BadFileError: the file's schema describes too much.
    """
    is_file = check_start(raw)
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
    return opened(raw, options=options)


def _check_columns(schema: pa.Schema, columns: Sequence[str]) -> bool:
    """Check that the columns can be read; True if all are plain (see :func:`is_plain`)."""
    names = list(schema_names(schema))
    for name in columns:
        if names.count(name) != 1:
            many = "more than one" if name in names else "no"
            raise BadFileError(f"{many} column {name!r}; there are {listed(names)}")
    text = type_of(schema, columns[0])
    if pa.types.is_dictionary(text):
        text = text.value_type
    if text not in TEXT_TYPES:
        raise BadFileError(f"column {columns[0]!r} is {text}, not a string")
    return all(is_plain(type_of(schema, name)) for name in columns)
