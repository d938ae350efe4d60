"""Rows of CSV and TSV files, one at a time, with the standard library's reader.

The first line names the columns. Bytes that are no UTF-8 come through as they are, so that a record
is wrong alone: the reader works on text, in which they stand as lone surrogates.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.corpus.fields import listed
from pipeline.corpus.limits import MOST_VALUES
from pipeline.errors import BadFileError

EXTRA_BYTES = 4 << 20
"""Bytes by which a field may exceed the longest text; more is a quote that nobody closed."""
MOST_EMPTY_LINES = 1 << 22
"""Empty lines after one another: they take a few bytes, compressed, and long to read."""


def column_names(file: io.BufferedIOBase, delimiter: str) -> list[str]:
    """The names in the first line."""
    return next(_reader(_Lines(file, delimiter, EXTRA_BYTES), EXTRA_BYTES), [])


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
    lines = _Lines(file, delimiter, 2 * longest)
    reader = _reader(lines, longest)
    number = -1
    try:
        names = next(reader, [])
        for name in columns:
            if names.count(name) != 1:
                many = "more than one" if name in names else "no"
                raise BadFileError(f"{many} column {name!r}; there are {listed(names)}")
        places = [(name, names.index(name)) for name in columns]
        for number, row in enumerate(lines.begin_row_before(reader)):
            if len(row) == len(names):
                yield str(number), {name: _bytes(row[place]) for name, place in places}
            else:
                yield str(number), f"has {len(row)} fields, and the first line names {len(names)}"
    except csv.Error as error:
        raise BadFileError(f"after row {number}: {error} (a quote that nobody closed?)") from error


def _bytes(field: str) -> bytes:
    return field.encode(errors="surrogateescape")


def _reader(lines: "_Lines", longest: int) -> Iterator[list[str]]:
    csv.field_size_limit(longest)
    return csv.reader(lines, delimiter=lines.delimiter, strict=True)


class _Lines:
    """The lines of a file, as the standard library's reader takes them; a row has one or more."""

    def __init__(self, file: io.BufferedIOBase, delimiter: str, longest: int):
        """
        Args:
            longest: characters that a row may have.
        """
        self.delimiter = delimiter
        self._longest, self._size, self._fields = longest, 0, 0
        self._text = io.TextIOWrapper(
            io.BufferedReader(_Raw(file), 1 << 20),
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="",
        )

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._longest - self._size + 1)
        if not line:
            raise StopIteration
        self._size += len(line)
        self._fields += line.count(self.delimiter)
        if self._size > self._longest:
            raise csv.Error(f"the next has more than {self._longest:,} characters")
        if self._fields > MOST_VALUES:
            raise csv.Error(f"the next has more than {MOST_VALUES:,} fields")
        return line

    def begin_row_before(self, rows: Iterator[list[str]]) -> Iterator[list[str]]:
        """The rows that are not empty, each of which is counted from its start."""
        empty = 0
        while True:
            self._size = self._fields = 0
            row = next(rows, None)
            if row is None:
                return
            if row:
                empty = 0
                yield row
            else:
                empty += 1
                if empty > MOST_EMPTY_LINES:
                    raise csv.Error(f"more than {MOST_EMPTY_LINES:,} empty lines follow")


class _Raw(io.RawIOBase):
    """A file for :class:`io.TextIOWrapper`, which would close it, and asks for more methods."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
