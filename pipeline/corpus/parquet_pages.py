"""Sizes that a Parquet file states, looked at before Arrow acts on them.

A *footer* becomes objects of several hundred times its size if it is made for that. A *page header*
states how large a page is, uncompressed, and Arrow takes the memory at once; a page that is a
*dictionary* holds values that a few bytes repeat any number of times. :class:`PageWatch` stands
between Arrow and the file. Arrow reads each column chunk from its start to its end, so that the
watch sees every page header go by and, without reading anything twice, stops Arrow before it gets
one that states too much, or one that needs batches of fewer rows.

For example, a dictionary page of 2 MB and batches of 8192 rows may become 16 GB. The watch stops
the first batch before the dictionary is decoded; batches of 128 rows have 256 MB at most.
"""

import base64
import io
import os
from binascii import Error as Base64Error
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from pipeline.corpus.ipc_messages import check_schema
from pipeline.corpus.limits import most_rows, too_large
from pipeline.corpus.thrift import BINARY, LIST, STRUCT, CompactReader, ThriftError
from pipeline.errors import BadFileError

MOST_FOOTER_BYTES = 64 << 20
MOST_STRUCTS = 1_000_000
"""Structs of a footer: Arrow's objects take up to 900 bytes each."""
MOST_ELEMENTS = 200_000
"""Elements of a list in a footer: columns, row groups."""
MOST_DEPTH = 100
"""Groups of columns within one another."""
WINDOW_BYTES = 64 << 20
"""Bytes of strings that a batch of rows may hold, beside one page; a batch has one row at least."""
REPEATED_BYTES = 256 << 20
"""The same for strings that a page may repeat, all as long as possible: they hardly ever are."""
LEAST_BATCH = 1024
"""Rows for whose nulls Arrow takes memory, however few are asked for."""
MOST_PAGE_VALUES = 1 << 26
LEVEL_BYTES = 8
"""Arrow's repetition and definition level of a value in a list, and its part of an offset."""
HEADER_BYTES = 16 << 20
"""Page headers end within so many bytes for Arrow, too."""
DICTIONARY_PAGE = 2
DICTIONARY_ENCODINGS, DELTA_BYTE_ARRAY = (2, 8), 7
"""Numbers of encodings: dictionary (old and new), and strings that share beginnings."""
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def open_parquet(raw: io.BufferedIOBase) -> pq.ParquetFile:
    """A reader of a file, for its footer.

    Raises:
        BadFileError: the footer states too much.
    """
    size = raw.seek(0, os.SEEK_END)
    _check_footer(raw, size)
    raw.seek(0)
    parquet = pq.ParquetFile(raw, thrift_container_size_limit=MOST_ELEMENTS)
    rows = parquet.metadata.num_rows
    if rows > most_rows(size):
        raise BadFileError(f"states {rows:,} rows, in a file of {size:,} bytes")
    return parquet


def _check_footer(raw: io.BufferedIOBase, size: int) -> None:
    raw.seek(max(0, size - 8))
    tail = raw.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length + 8 > size:
        return  # Arrow says what is wrong
    if length > MOST_FOOTER_BYTES:
        raise BadFileError(f"has a footer of {length:,} bytes ({MOST_FOOTER_BYTES:,} at most)")
    raw.seek(size - 8 - length)
    reader = CompactReader(raw.read(length), most_structs=MOST_STRUCTS)
    try:
        for number, kind in reader.fields():
            if (number, kind) == (2, LIST):
                _check_tree(reader)
            elif (number, kind) == (5, LIST):
                _check_arrow_schema(reader)
            else:
                reader.skip(kind)
    except IndexError:
        raise BadFileError("truncated or corrupt: the footer breaks off") from None
    except ThriftError as error:
        raise BadFileError(
            f"truncated or corrupt: the footer ({length:,} bytes) has {error}"
        ) from error


def _elements(reader: CompactReader) -> int:
    count, kind = reader.list_header()
    if kind != STRUCT:
        raise ThriftError("a list of something else than structs")
    return count


def _check_tree(reader: CompactReader) -> None:
    """Look at the schema, whose groups are followed by what is in them."""
    left: list[int] = []
    for _ in range(_elements(reader)):
        children = reader.struct().get(5) or 0
        if left:
            left[-1] -= 1
        if isinstance(children, int) and children > 0:
            left.append(children)
        if len(left) > MOST_DEPTH:
            raise BadFileError(f"has columns of more than {MOST_DEPTH} groups within one another")
        while left and left[-1] <= 0:
            left.pop()


def _check_arrow_schema(reader: CompactReader) -> None:
    """Look at the schema that Arrow writes beside Parquet's."""
    for _ in range(_elements(reader)):
        key = value = b""
        for number, kind in reader.fields():
            if kind == BINARY and number == 1:
                key = reader.binary()
            elif kind == BINARY and number == 2:
                value = reader.binary()
            else:
                reader.skip(kind)
        if key == b"ARROW:schema":
            try:
                check_schema(base64.b64decode(value))
            except Base64Error as error:
                raise BadFileError(f"truncated or corrupt: Arrow's schema: {error}") from error


class Leaf(NamedTuple):
    """A column of a Parquet file as it is stored: a field of a struct has one of its own."""

    number: int
    """Place among all such columns."""
    path: str
    is_list: bool
    """True if a row may have any number of values."""
    is_text: bool
    """True for strings, whose sizes vary."""
    width: int
    """Bytes of a value; 0 for strings."""


def leaves_of(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[Leaf]:
    """The stored columns that some fields are read from."""
    leaves = []
    for index in range(metadata.num_columns):
        leaf = metadata.schema.column(index)
        if any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns):
            is_text = leaf.physical_type == "BYTE_ARRAY"
            width = 0 if is_text else WIDTHS.get(leaf.physical_type, leaf.length)
            leaves.append(Leaf(index, leaf.path, leaf.max_repetition_level > 0, is_text, width))
    return leaves


@dataclass
class _Chunk:
    """A column of a row group, as far as its pages have gone by."""

    leaf: Leaf
    next_header: int
    """Offset in the file."""
    stop: int
    head: bytes = b""
    """The first part of the next header, if it was cut."""
    dictionary: int = 0
    page: int = 0
    """Bytes of the largest page."""
    row: int = 0
    """Values before the next page."""
    window: int = 0
    in_window: int = 0
    """Bytes of the batch that the next page belongs to."""
    since_batch: int = 0
    repeated: int = 0
    """Bytes of the longest value that may be repeated, at most."""


class PageWatch:
    """A file that Arrow reads column chunks from, while their page headers are looked at."""

    def __init__(self, raw: io.BufferedIOBase, limit: int):
        """
        Args:
            limit: bytes that the pages which are decoded at a time may state.
        """
        self._raw, self._limit = raw, limit
        self._places: list[tuple[Leaf, int, int]] = []
        self._chunks: list[_Chunk] = []
        self._at = 0
        self.rows = 0
        """Rows per batch; 0 before there is any."""
        self.fewer_rows = False
        """True once Arrow was stopped because batches have to be smaller: of ``rows`` rows."""
        self.problem = ""
        """The reason to reject the file; Arrow was stopped, too."""

    def begin(self, group: pq.RowGroupMetaData, leaves: Sequence[Leaf], rows: int) -> None:
        """Begin a row group.

        Args:
            leaves: the columns that are read.
            rows: per batch, at most.

        Raises:
            BadFileError: one row states more than may be decoded.
        """
        width = LEAST_BATCH * sum(leaf.width for leaf in leaves)
        if width > self._limit:
            raise BadFileError(too_large(f"a batch of {LEAST_BATCH} rows", width, self._limit))
        self.rows = max(1, min(rows, LEAST_BATCH * WINDOW_BYTES // max(width, 1)))
        self._places = []
        for leaf in leaves:
            chunk = group.column(leaf.number)
            start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
            if dictionary is not None and 0 < dictionary < start:
                start = dictionary
            # Some old writers did not count the header of the dictionary's page; nor does Arrow.
            self._places.append((leaf, start, start + chunk.total_compressed_size + 100))
        self.begin_again()

    def begin_again(self) -> None:
        """Begin the row group from its start, with as many rows per batch as there are now."""
        self._chunks = [_Chunk(*place) for place in self._places]
        self.problem, self.fewer_rows = "", False

    def next_batch(self) -> None:
        """A batch is decoded."""
        for chunk in self._chunks:
            chunk.since_batch = 0

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        start, self._at = self._at, self._at + len(data)
        for chunk in self._chunks:
            if start <= chunk.next_header + len(chunk.head) < self._at:
                self._look(chunk, start, data)
        if self.problem or self.fewer_rows:
            raise BadFileError(self.problem or "batches have to be smaller")
        return data

    def _look(self, chunk: _Chunk, start: int, data: bytes) -> None:
        """Read the headers in what begins at an offset of the file."""
        if chunk.head:
            data = chunk.head + data[chunk.next_header + len(chunk.head) - start :]
            start, chunk.head = chunk.next_header, b""
        stop = start + len(data)
        while chunk.next_header < min(stop, chunk.stop) and not self.problem:
            reader = CompactReader(data, chunk.next_header - start)
            try:
                header = reader.struct()
            except IndexError:
                chunk.head = data[chunk.next_header - start :]
                if len(chunk.head) > HEADER_BYTES:
                    self.problem = f"column {chunk.leaf.path!r} has a page header that does not end"
                return
            except ThriftError as error:
                self.problem = (
                    f"truncated or corrupt: a page of column {chunk.leaf.path!r} has {error}"
                )
                return
            self._take(chunk, header)
            chunk.next_header = start + reader.at + max(0, _number(header, 3))

    def _take(self, chunk: _Chunk, header: dict[int, Any]) -> None:
        """Account for a page."""
        size = _number(header, 2)
        of_kind = (header[i] for i in (5, 7, 8) if isinstance(header.get(i), dict))
        about: dict[int, Any] = next(of_kind, {})
        values = _number(about, 1)
        encoding = _number(about, 4 if isinstance(header.get(8), dict) else 2)
        is_dictionary = _number(header, 1) == DICTIONARY_PAGE
        if is_dictionary:
            chunk.dictionary = max(chunk.dictionary, size)
        else:
            chunk.page = max(chunk.page, size)
        decoded = sum(c.dictionary + c.page for c in self._chunks)
        where = f"a page of column {chunk.leaf.path!r}"
        if decoded > self._limit:
            self.problem = too_large(f"{where}, with its dictionary", decoded, self._limit)
        elif chunk.dictionary > self._limit // 2:  # Arrow has it several times, with its values
            what = f"a dictionary of column {chunk.leaf.path!r}"
            self.problem = too_large(what, chunk.dictionary, self._limit // 2)
        elif values > MOST_PAGE_VALUES:
            self.problem = f"{where} states {values:,} values ({MOST_PAGE_VALUES:,} at most)"
        elif not is_dictionary and chunk.leaf.is_list:
            self._take_list(chunk, size, values, encoding)
        elif not is_dictionary and chunk.leaf.is_text:
            self._take_strings(chunk, size, values, encoding)

    def _take_list(self, chunk: _Chunk, size: int, values: int, encoding: int) -> None:
        """Account for a page whose values may all be in one row."""
        if chunk.leaf.is_text and encoding == DELTA_BYTE_ARRAY:
            size *= values
        chunk.since_batch += size + values * LEVEL_BYTES
        if chunk.since_batch > self._limit:
            self._reduce(1 + self.rows // 8)
            if not self.fewer_rows:
                what = f"a row of column {chunk.leaf.path!r}"
                self.problem = too_large(what, chunk.since_batch, self._limit)

    def _take_strings(self, chunk: _Chunk, size: int, values: int, encoding: int) -> None:
        """Account for a page of strings, one per row."""
        if encoding in DICTIONARY_ENCODINGS:
            chunk.repeated = max(chunk.repeated, chunk.dictionary)
        elif encoding == DELTA_BYTE_ARRAY:
            chunk.repeated = max(chunk.repeated, size)
        repeated = sum(c.repeated for c in self._chunks if not c.leaf.is_list)
        if repeated:
            self._reduce(REPEATED_BYTES // repeated)
        if encoding not in (*DICTIONARY_ENCODINGS, DELTA_BYTE_ARRAY) and values > 0:
            self._take_plain(chunk, size, values)
        chunk.row += max(0, values)

    def _take_plain(self, chunk: _Chunk, size: int, values: int) -> None:
        """Account for strings as they are: a batch has those of its rows."""
        if size > WINDOW_BYTES:  # a batch should not have all of the page
            self._reduce(WINDOW_BYTES * values // size)
        first, last = chunk.row // self.rows, (chunk.row + values - 1) // self.rows
        if first != chunk.window:
            chunk.in_window = 0
        if chunk.in_window + min(size, self.rows * size // values) > WINDOW_BYTES + chunk.page:
            self._reduce(self.rows // 8)
        chunk.in_window = size + (chunk.in_window if first == last else 0)
        chunk.window = last

    def _reduce(self, rows: int) -> None:
        """Have batches of so many rows, if that is fewer than now."""
        if max(rows, 1) < self.rows:
            self.rows, self.fewer_rows = max(rows, 1), True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = self._raw.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def flush(self) -> None:
        """Do nothing; pyarrow calls it."""

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""


def _number(fields: dict[int, Any], field: int) -> int:
    value = fields.get(field)
    return value if isinstance(value, int) else 0
