"""Rows of CSV and TSV files, one at a time, with the standard library's reader.

The first line names the columns. Bytes that are no UTF-8 come through as they are, so that a record
is wrong alone: the reader works on text, in which they stand as lone surrogates.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.corpus.fields import listed
from pipeline.corpus.headers.limits import MOST_VALUES
from pipeline.errors import BadFileError

EXTRA_BYTES = 4 << 20
"""Bytes by which a field may exceed the longest text; more is a quote that nobody closed."""
BLOCK_BYTES = 1 << 20
MOST_EMPTY_LINES = 1 << 22
"""Empty lines after one another: they take a few bytes, compressed, and long to read."""


def column_names(file: io.BufferedIOBase, delimiter: str) -> list[str]:
    """The names in the first line."""
    return next(_reader(_Rows(file, delimiter, EXTRA_BYTES), EXTRA_BYTES), [])


def table_rows(
    file: io.BufferedIOBase, delimiter: str, columns: Sequence[str], max_document_bytes: int
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Number and fields, or what is wrong, of each row.

    Args:
        columns: that are wanted.
        max_document_bytes: a field that is far longer than such a text, or a row of twice its
            length, ends the file.

    Raises:
        BadFileError: a column is missing, or the rest cannot be told apart into rows.
    """
    longest = max_document_bytes + EXTRA_BYTES
    raw = _Rows(file, delimiter, 2 * longest)
    number, empty = -1, 0
    try:
        reader = _reader(raw, longest)
        names = next(reader, [])
        for name in columns:
            if names.count(name) != 1:
                many = "more than one" if name in names else "no"
                raise BadFileError(f"{many} column {name!r}; there are {listed(names)}")
        places = [(name, names.index(name)) for name in columns]
        for row in reader:
            raw.row_bytes = raw.row_fields = 0
            if not row:
                empty += 1
                if empty > MOST_EMPTY_LINES:
                    raise csv.Error(f"more than {MOST_EMPTY_LINES:,} empty lines")
                continue
            number += 1
            empty = 0
            if len(row) == len(names):
                yield str(number), {name: _bytes(row[place]) for name, place in places}
            else:
                yield str(number), f"has {len(row)} fields, and the first line names {len(names)}"
    except csv.Error as error:
        where = f"after row {number}" if number >= 0 else "in the first row"
        raise BadFileError(f"{where}: {error} (a quote that nobody closed?)") from error


def _bytes(field: str) -> bytes:
    return field.encode(errors="surrogateescape")


def _reader(raw: "_Rows", longest: int) -> Iterator[list[str]]:
    csv.field_size_limit(longest)
    text = io.TextIOWrapper(
        io.BufferedReader(raw, BLOCK_BYTES),
        encoding="utf-8-sig",
        errors="surrogateescape",
        newline="",
    )
    return csv.reader(text, delimiter=raw.delimiter, strict=True)


class _Rows(io.RawIOBase):
    """A file for :class:`io.TextIOWrapper`, which would close it, and asks for more methods.

    It is read a block at a time. Who takes rows from what is read sets the counts to 0, so that
    they say, up to a block, what there is of the next row.
    """

    row_bytes = row_fields = 0

    def __init__(self, file: io.BufferedIOBase, delimiter: str, longest: int):
        """
        Args:
            longest: bytes that a row may have.
        """
        self._file, self._longest = file, longest
        self.delimiter = delimiter
        self._separator = delimiter.encode()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self.row_bytes > self._longest:
            raise csv.Error(f"the next row has more than {self._longest:,} bytes")
        if self.row_fields > MOST_VALUES:
            raise csv.Error(f"the next row has more than {MOST_VALUES:,} fields")
        self.row_bytes += len(data)
        self.row_fields += data.count(self._separator)
        return len(data)
