"""Rows of CSV and TSV files, one at a time, with the standard library's reader.

The first line names the columns. Bytes that are no UTF-8 come through as they are, so that a record
is wrong alone: the reader works on text, in which they stand as lone surrogates.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import BadFileError

EXTRA_BYTES = 4 << 20
"""Bytes by which a field may exceed the longest text; more is a quote that nobody closed."""


def column_names(file: io.BufferedIOBase, delimiter: str) -> list[str]:
    """The names in the first line."""
    return next(_reader(file, delimiter, EXTRA_BYTES), [])


def table_rows(
    file: io.BufferedIOBase, delimiter: str, columns: Sequence[str], max_document_bytes: int
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Number and fields, or what is wrong, of each row.

    Args:
        columns: that are wanted.
        max_document_bytes: a field that is far longer than such a text ends the file.

    Raises:
        BadFileError: a column is missing, or the rest cannot be told apart into rows.
    """
    reader = _reader(file, delimiter, max_document_bytes + EXTRA_BYTES)
    number = -1
    try:
        names = next(reader, [])
        for name in columns:
            if names.count(name) != 1:
                many = "more than one" if name in names else "no"
                raise BadFileError(f"{many} column {name!r}; there are {', '.join(names)}")
        places = [(name, names.index(name)) for name in columns]
        for number, row in enumerate(filter(None, reader)):
            if len(row) == len(names):
                yield str(number), {name: _bytes(row[place]) for name, place in places}
            else:
                yield str(number), f"has {len(row)} fields, and the first line names {len(names)}"
    except csv.Error as error:
        raise BadFileError(f"after row {number}: {error} (a quote that nobody closed?)") from error


def _bytes(field: str) -> bytes:
    return field.encode(errors="surrogateescape")


def _reader(file: io.BufferedIOBase, delimiter: str, longest: int) -> Iterator[list[str]]:
    csv.field_size_limit(longest)
    text = io.TextIOWrapper(
        io.BufferedReader(_Raw(file), 1 << 20),
        encoding="utf-8-sig",
        errors="surrogateescape",
        newline="",
    )
    return csv.reader(text, delimiter=delimiter, strict=True)


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
