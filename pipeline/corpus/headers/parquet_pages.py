"""Sizes that the pages of a Parquet file state, looked at before Arrow acts on them.

A *page header* states how large a page is, uncompressed, and Arrow takes the memory at once; a page
that is a *dictionary* holds values that a few bytes repeat any number of times. :class:`PageWatch`
stands between Arrow and the file. Arrow reads each column chunk from its start to its end, so that
the watch sees every page header go by and, without reading anything twice, stops Arrow before it
gets one that states too much, or one that needs batches of fewer rows.

For example, a dictionary page of 2 MB and batches of 8192 rows may become 16 GB. The watch stops
the first batch before the dictionary is decoded; batches of 128 rows have 256 MB at most.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.headers.limits import too_large
from pipeline.corpus.headers.parquet_footer import DELTA_STRINGS, Leaf, Place
from pipeline.corpus.headers.thrift import CompactReader, ThriftError
from pipeline.errors import BadFileError
from pipeline.storage.watched_file import ReadOnlyFile

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
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
ABOUT = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}
"""By type of page, the field of its header with what only pages of the type have."""
DICTIONARY_ENCODINGS = (2, 8)
"""Numbers of encodings, old and new."""


@dataclass
class _Chunk:
    """A column of a row group, as far as its pages have gone by."""

    leaf: Leaf
    next_header: int
    """Offset in the file."""
    stop: int
    in_deltas: bool
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


class PageWatch(ReadOnlyFile):
    """A file that Arrow reads column chunks from, while their page headers are looked at."""

    def __init__(self, raw: io.BufferedIOBase, limit: int):
        """
        Args:
            limit: bytes that the pages which are decoded at a time may state.
        """
        self._raw, self._limit = raw, limit
        self._places: Sequence[Place] = ()
        self._chunks: list[_Chunk] = []
        self._at = 0
        self.rows = 0
        """Rows per batch; 0 before there is any."""
        self.fewer_rows = False
        """True once Arrow was stopped because batches have to be smaller: of ``rows`` rows."""
        self.problem = ""
        """The reason to reject the file; Arrow was stopped, too."""

    def begin(self, places: Sequence[Place], rows: int) -> None:
        """Begin a row group.

        Args:
            places: the chunks of the columns that are read.
            rows: per batch, at most.

        Raises:
            BadFileError: one row states more than may be decoded.
        """
        width = LEAST_BATCH * sum(place.leaf.width for place in places)
        if width > self._limit:
            raise BadFileError(too_large(f"a batch of {LEAST_BATCH} rows", width, self._limit))
        self.rows = max(1, min(rows, LEAST_BATCH * WINDOW_BYTES // max(width, 1)))
        self._places = places
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
        kind = _number(header, 1)
        about = header.get(ABOUT.get(kind, 0))
        about = about if isinstance(about, dict) else {}
        values = _number(about, 1)
        encoding = _number(about, 4 if kind == DATA_PAGE_V2 else 2)
        is_dictionary = kind == DICTIONARY_PAGE
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
        if chunk.leaf.is_text and encoding == DELTA_STRINGS:
            size *= values
        if chunk.leaf.is_text and encoding in DICTIONARY_ENCODINGS and chunk.in_deltas:
            size += values * chunk.dictionary  # which is not read as one
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
        elif encoding == DELTA_STRINGS:
            chunk.repeated = max(chunk.repeated, size)
        repeated = sum(c.repeated for c in self._chunks if not c.leaf.is_list)
        if repeated:
            self._reduce(REPEATED_BYTES // repeated)
        if encoding not in (*DICTIONARY_ENCODINGS, DELTA_STRINGS) and values > 0:
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

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""


def _number(fields: dict[int, Any], field: int) -> int:
    value = fields.get(field)
    return value if isinstance(value, int) else 0
