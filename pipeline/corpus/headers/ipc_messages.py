"""Sizes that Arrow IPC files and streams state, looked at before Arrow acts on them.

A *message* is metadata, which is a flatbuffer, and a body of buffers. A compressed buffer begins
with its uncompressed size, for which Arrow takes the memory at once; metadata may refer to one part
of itself any number of times, and Arrow makes an object of each. Tables and fields are those of
https://github.com/apache/arrow/tree/main/format (``Message.fbs``, ``Schema.fbs``, ``File.fbs``).
"""

import io
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from pipeline.corpus.headers.flatbuffer import Table
from pipeline.corpus.headers.limits import too_large
from pipeline.errors import BadFileError

MAGIC = b"ARROW1"
FEATHER = b"FEA1"
"""Begins files of Feather's version 1; those of version 2 are Arrow files."""
CONTINUATION = 0xFFFFFFFF
MOST_METADATA_BYTES = 64 << 20
MOST_FIELDS = 100_000
"""Columns, those in other columns included."""
MOST_NAME_BYTES = 64 << 20
"""Bytes of names and of custom metadata, each as often as it is referred to."""
MOST_DEPTH = 100
MOST_GAP = 64
"""Bytes between the last message of a file and its footer: the mark of the end, and padding."""
SCHEMA, DICTIONARY_BATCH, RECORD_BATCH = 1, 2, 3
"""Types of messages."""


class _Budget:
    """Counts what a schema refers to."""

    def __init__(self) -> None:
        self._fields = self._bytes = 0

    def fields(self, table: Table, vector: int, depth: int = 0) -> None:
        """Account for a vector of fields, and what is in them."""
        if depth > MOST_DEPTH:
            raise BadFileError(f"has columns of more than {MOST_DEPTH} within one another")
        for field in table.tables(vector):
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise BadFileError(f"has a schema of more than {MOST_FIELDS:,} columns")
            self._take(field.size(0))
            self.pairs(field, 6)
            self.fields(field, 5, depth + 1)

    def pairs(self, table: Table, vector: int) -> None:
        """Account for custom metadata."""
        for pair in table.tables(vector):
            self._take(64 + pair.size(0) + pair.size(1))

    def _take(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MOST_NAME_BYTES:
            raise BadFileError(
                f"has names and metadata of more than {MOST_NAME_BYTES:,} bytes in its schema"
            )


def check_start(raw: io.BufferedIOBase) -> bool:
    """Look at the schema of a file or stream, and go back to its start.

    Returns:
        True for a file: it begins with the format's name.

    Raises:
        BadFileError: the schema describes too much, or the format is Feather's first one. What is
            wrong otherwise is left to Arrow.
    """
    raw.seek(0)
    start = raw.read(6)
    if start.startswith(FEATHER):
        raise BadFileError(
            "is a Feather file of version 1, which is no Arrow file; write it anew with "
            "pyarrow.feather.write_feather"
        )
    is_file = start == MAGIC
    with suppress(struct.error):
        schema: Table | None = None
        if is_file:
            if (found := _footer(raw)) is not None:
                footer, _ = found
                schema = footer.table(1)
                _Budget().pairs(footer, 4)
        elif (message := _message(raw, 0)[0]) is not None and message[0] == SCHEMA:
            schema = message[1]
        if schema is not None:
            _check_schema_table(schema)
    raw.seek(0)
    return is_file


def _footer(raw: io.BufferedIOBase) -> tuple[Table, int] | None:
    """A file's footer, and the offset at which it begins."""
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - 10))
    tail = raw.read(10)
    length = int.from_bytes(tail[:4], "little", signed=True)
    if tail[4:] != MAGIC or not 0 < length <= size - 10:
        return None
    _check_metadata(length)
    start = size - 10 - length
    raw.seek(start)
    return Table.root(raw.read(length)), start


def _blocks(footer: Table, vector: int) -> list[tuple[int, int]]:
    """The offsets in the file, and those of their ends, of messages that a footer lists."""
    blocks = footer.structs(vector, "<qi4xq")
    return [(offset, offset + header + body) for offset, header, body in blocks]


def _check_metadata(length: int) -> None:
    if length > MOST_METADATA_BYTES:
        raise BadFileError(
            f"truncated or corrupt: states metadata of {length:,} bytes ({MOST_METADATA_BYTES:,} "
            "at most)"
        )


def _message(raw: io.BufferedIOBase, at: int) -> tuple[tuple[int, Table, int] | None, int]:
    """Type, header and size of the body of a message, and the offset of the body."""
    if at < 0:
        return None, at
    raw.seek(at)
    head = raw.read(8)
    first, second = struct.unpack("<II", head.ljust(8, b"\0"))
    prefix, length = (8, second) if first == CONTINUATION else (4, first)
    if not length or len(head) < 8:
        return None, at
    _check_metadata(length)
    raw.seek(at + prefix)
    message = Table.root(raw.read(length))
    header = message.table(2)
    _Budget().pairs(message, 4)
    kind, size = message.number(1, "<B"), message.number(3)
    return (None if header is None else (kind, header, size)), at + prefix + length


def check_schema(message: bytes) -> None:
    """Look at a schema's message, with the size before it.

    Raises:
        BadFileError: it describes too much. What is no such message is left to Arrow.
    """
    start = 8 if message[:4] == b"\xff\xff\xff\xff" else 4
    with suppress(struct.error):
        header = Table.root(message[start:]).table(2)
        if header is not None:
            _check_schema_table(header)


def _check_schema_table(schema: Table) -> None:
    budget = _Budget()
    budget.fields(schema, 1)
    budget.pairs(schema, 2)


def _layout(kind: pa.DataType) -> list[tuple[int, bool]]:
    """Number of buffers, and whether there are more (views), of each array of a column."""
    if isinstance(kind, pa.BaseExtensionType):
        return _layout(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return [(2, False)]  # values are elsewhere
    count = 2
    if pa.types.is_null(kind) or pa.types.is_run_end_encoded(kind):
        count = 0
    elif pa.types.is_struct(kind) or pa.types.is_fixed_size_list(kind):
        count = 1
    elif pa.types.is_union(kind):
        count = 1 if kind.mode == "sparse" else 2
    elif kind in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary()) or (
        pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    ):
        count = 3
    is_view = kind in (pa.string_view(), pa.binary_view())
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return [(count, is_view), *(array for each in inner for array in _layout(each))]


@dataclass
class _Batch:
    """What the metadata of a record batch says."""

    rows: int
    buffers: list[tuple[int, ...]]
    """Offset in the body and length of each."""
    is_compressed: bool
    views: list[int]
    """Buffers beyond the usual ones, of each array of views."""

    @classmethod
    def read(cls, table: Table) -> "_Batch":
        views = [count for (count,) in table.structs(4, "<q")]
        buffers = table.structs(2, "<qq")
        return cls(table.number(0), buffers, table.table(3) is not None, views)

    def wanted(self, schema: pa.Schema, columns: Sequence[int]) -> list[tuple[int, ...]]:
        """The buffers of some columns; all of them if the metadata is not as the schema has it."""
        at, views, found = 0, iter(self.views), []
        for index, field in enumerate(schema):
            for count, is_view in _layout(field.type):
                count += max(0, next(views, 0)) if is_view else 0
                found += self.buffers[at : at + count] if index in columns else []
                at += count
        return found if at == len(self.buffers) else self.buffers


class MessageWatch:
    """Looks at the messages of a file or stream, each before Arrow reads it."""

    def __init__(self, raw: io.BufferedIOBase, limit: int, most_rows: int):
        """
        Args:
            limit: bytes that one record batch, or all dictionaries, may state.
            most_rows: rows that the file may state.
        """
        self._raw, self._limit, self._most_rows = raw, limit, most_rows
        self._rows = 0
        self._dictionaries: dict[int, int] = {}
        self._dictionary_places: list[int] = []
        self._batch_places: list[int] = []
        self._size = raw.seek(0, os.SEEK_END)
        raw.seek(0)

    def find_messages(self) -> None:
        """Find the messages of a file, of which :func:`check_start` thinks well.

        Raises:
            BadFileError: the footer is that of another file, which was put behind this one.
        """
        with suppress(struct.error):
            found = _footer(self._raw)
            if found is not None:
                footer, start = found
                dictionaries, batches = _blocks(footer, 2), _blocks(footer, 3)
                self._dictionary_places = [at for at, _ in dictionaries]
                self._batch_places = [at for at, _ in batches]
                ends = [end for _, end in (*dictionaries, *batches)]
                gap = start - (max(ends) if ends else _message(self._raw, len(MAGIC) + 2)[1])
                if gap > MOST_GAP:
                    raise BadFileError(
                        f"{gap:,} bytes before the file's footer belong to no record batch that it "
                        "lists: if files were put one behind the other, separate them"
                    )
        self._raw.seek(0)

    def check_dictionaries(self, schema: pa.Schema) -> None:
        """Look at a file's dictionaries, which Arrow reads before the first record batch."""
        for at in self._dictionary_places:
            self._check(at, schema, [], is_stream=False)

    def check_batch(self, number: int, schema: pa.Schema, columns: Sequence[int]) -> None:
        """Look at a record batch of a file.

        Raises:
            BadFileError: it states too much.
        """
        if number < len(self._batch_places):
            self._check(self._batch_places[number], schema, columns, is_stream=False)

    def check_next(self, schema: pa.Schema, columns: Sequence[int]) -> None:
        """Look at the messages of a stream from the file's position on, up to a record batch."""
        start = self._raw.tell()
        at: int | None = start
        while at is not None:
            at = self._check(at, schema, columns, is_stream=True)
        self._raw.seek(start)

    def _check(
        self, at: int, schema: pa.Schema, columns: Sequence[int], *, is_stream: bool
    ) -> int | None:
        """Look at a message; returns the offset of the next, None after a record batch."""
        try:
            message, body = _message(self._raw, at)
            if message is None:
                return None
            kind, header, size = message
            if is_stream and size > self._limit:  # all of it is read
                raise BadFileError(too_large("a record batch", size, self._limit))
            if kind == RECORD_BATCH:
                batch = _Batch.read(header)
                self._take_rows(batch.rows)
                self._take(self._stated(batch, batch.wanted(schema, columns), body))
                return None
            if kind == DICTIONARY_BATCH and (data := header.table(1)) is not None:
                batch, number = _Batch.read(data), header.number(0)
                before = self._dictionaries.get(number, 0) if header.number(2, "<B") else 0
                self._dictionaries[number] = before + self._stated(batch, batch.buffers, body)
                self._take(0)
            return body + size if size >= 0 else None
        except struct.error:
            return None  # Arrow says what is wrong

    def _take_rows(self, rows: int) -> None:
        self._rows += rows
        if max(rows, self._rows) > self._most_rows:
            raise BadFileError(f"states {self._rows:,} rows, in a file of {self._size:,} bytes")

    def _take(self, size: int) -> None:
        dictionaries = sum(self._dictionaries.values())
        if size + dictionaries > self._limit:
            more = ", with dictionaries" if dictionaries else ""
            raise BadFileError(too_large(f"a record batch{more}", size + dictionaries, self._limit))

    def _stated(self, batch: _Batch, buffers: list[tuple[int, ...]], body: int) -> int:
        """Bytes that buffers take, uncompressed."""
        total = 0
        for offset, length in buffers:
            stated = -1
            if batch.is_compressed and length >= 8 and 0 <= body + offset < self._size:
                self._raw.seek(body + offset)
                (stated,) = struct.unpack("<q", self._raw.read(8).ljust(8, b"\0"))
            # -1 stands for a buffer that is not compressed after all.
            total += max(0, length) if stated < 0 else stated
        return total
