"""Footers of Parquet files, looked at before Arrow acts on them.

A footer becomes objects of several hundred times its size if it is made for that. Where column
chunks are is read here, too: what pyarrow has for it, ``RowGroupMetaData.column``, ends the process
if a chunk's metadata is damaged, or encrypted. See
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

import base64
import io
import os
from binascii import Error as Base64Error
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from pipeline.corpus.headers.ipc_messages import check_schema
from pipeline.corpus.headers.limits import most_rows
from pipeline.corpus.headers.thrift import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    CompactReader,
    ThriftError,
)
from pipeline.errors import BadFileError

MOST_FOOTER_BYTES = 64 << 20
MOST_STRUCTS = 1_000_000
"""Structs of a footer: Arrow's objects take up to 900 bytes each."""
MOST_ELEMENTS = 200_000
"""Elements of a list in a footer: columns, row groups."""
MOST_DEPTH = 100
"""Groups of columns within one another."""
OLD_HEADER_BYTES = 100
"""Some old writers did not count the header of the dictionary's page; nor does Arrow then."""
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
COLUMNS, META_DATA = 1, 3
"""Fields of a row group and of a column chunk."""
ENCODINGS, TOTAL_COMPRESSED_SIZE, DATA_PAGE_OFFSET, DICTIONARY_PAGE_OFFSET = 2, 7, 9, 11
"""Fields of a column chunk's metadata."""
DELTA_LENGTHS, DELTA_STRINGS = 6, 7
"""Numbers of the encodings of strings by their lengths, and by what they share at the beginning."""


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


class Place(NamedTuple):
    """A column chunk's place in the file."""

    leaf: Leaf
    start: int
    """Offset of the first page."""
    stop: int
    """Offset of its end, or somewhat more."""
    in_deltas: bool
    """True if it says that strings are stored as DELTA_LENGTHS or DELTA_STRINGS. Arrow makes no
    dictionary of such."""


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


class Footer:
    """A footer that states no more than may be read.

    Raises:
        BadFileError: it states too much, or is damaged.
    """

    def __init__(self, raw: io.BufferedIOBase):
        size = raw.seek(0, os.SEEK_END)
        self._data = b""
        self._row_groups: list[int] = []
        """Offsets in the footer."""
        self._check(raw, size)
        raw.seek(0)
        self.parquet = pq.ParquetFile(raw, thrift_container_size_limit=MOST_ELEMENTS)
        """What Arrow made of it."""
        rows = self.parquet.metadata.num_rows
        if rows > most_rows(size):
            raise BadFileError(f"states {rows:,} rows, in a file of {size:,} bytes")

    def _check(self, raw: io.BufferedIOBase, size: int) -> None:
        raw.seek(max(0, size - 8))
        tail = raw.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length + 8 > size:
            return  # Arrow says what is wrong
        if length > MOST_FOOTER_BYTES:
            raise BadFileError(f"has a footer of {length:,} bytes ({MOST_FOOTER_BYTES:,} at most)")
        raw.seek(size - 8 - length)
        self._data = raw.read(length)
        reader = CompactReader(self._data, most_structs=MOST_STRUCTS)
        try:
            for number, kind in reader.fields():
                if (number, kind) == (2, LIST):
                    _check_tree(reader)
                elif (number, kind) == (4, LIST):
                    self._row_groups = _offsets(reader)
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

    def places(self, group: int, leaves: Sequence[Leaf]) -> list[Place]:
        """The chunks of some columns in a row group.

        Raises:
            BadFileError: the row group lacks one of them.
        """
        wanted = {leaf.number: leaf for leaf in leaves}
        reader = CompactReader(self._data, self._row_groups[group], MOST_STRUCTS)
        places: list[Place] = []
        for number, kind in reader.fields():
            if (number, kind) != (COLUMNS, LIST):
                reader.skip(kind)
                continue
            places = []  # of a field that is there twice, Arrow takes the last one
            for i in range(_elements(reader)):
                if i in wanted:
                    places.append(_place(reader, wanted[i]))
                else:
                    reader.skip(STRUCT)
        if len(places) < len(wanted):
            raise BadFileError(f"truncated or corrupt: row group {group} lacks columns")
        return places


def _offsets(reader: CompactReader) -> list[int]:
    """The offsets of a list's structs."""
    offsets = []
    for _ in range(_elements(reader)):
        offsets.append(reader.at)
        reader.skip(STRUCT)
    return offsets


def _place(reader: CompactReader, leaf: Leaf) -> Place:
    """Read a column chunk. As in Arrow, fields of another type than theirs are none."""
    meta: dict[int, int] = {}
    in_deltas = False
    for number, kind in reader.fields():
        if (number, kind) != (META_DATA, STRUCT):
            reader.skip(kind)
            continue
        for inner, inner_kind in reader.fields():
            if inner_kind == I64:
                meta[inner] = reader.integer()
            elif (inner, inner_kind) == (ENCODINGS, LIST):
                in_deltas = _names_deltas(reader)
            else:
                reader.skip(inner_kind)
    if not {DATA_PAGE_OFFSET, TOTAL_COMPRESSED_SIZE} <= meta.keys():
        raise BadFileError(
            f"the footer does not say where column {leaf.path!r} is: it may be encrypted"
        )
    start, dictionary = meta[DATA_PAGE_OFFSET], meta.get(DICTIONARY_PAGE_OFFSET, 0)
    if 0 < dictionary < start:
        start = dictionary
    stop = start + meta[TOTAL_COMPRESSED_SIZE] + OLD_HEADER_BYTES
    return Place(leaf, start, stop, in_deltas)


def _names_deltas(reader: CompactReader) -> bool:
    """Read a list of encodings."""
    count, kind = reader.list_header()
    if kind != I32:
        raise ThriftError("encodings that are no numbers")
    encodings = {reader.integer(I32) for _ in range(count)}
    return bool(encodings & {DELTA_LENGTHS, DELTA_STRINGS})


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
