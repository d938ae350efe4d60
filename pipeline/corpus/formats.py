"""The formats of input files.

To add one, derive a class from :class:`pipeline.corpus.input_format.InputFormat` and add an
instance to :data:`FORMATS`: ``--input-format``, its help, the files that a directory stands for,
planning and reading follow the table.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipeline.corpus.input_format import (
    EXPANSION,
    Columnar,
    Cut,
    InputFormat,
    Part,
    Record,
    neighbours,
)
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.storage.listing import InputFile

# Commands read the table to parse their flags: methods import what reads files, not the module.


class Parquet(Columnar):
    """Parquet files are cut between row groups; the position is the number of the row."""

    name, title, endings = "parquet", "Parquet", (".parquet", ".parq", ".pq")

    def text_bytes(self, file: InputFile) -> int:
        return file.size * EXPANSION

    def cut(self, file: InputFile, split_bytes: int) -> Cut:
        from pipeline.corpus.fields import schema_names
        from pipeline.corpus.headers.parquet_footer import Footer
        from pipeline.storage.places import open_input

        with open_input(file.url) as raw:
            metadata = Footer(raw).parquet.metadata
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        return Cut(
            neighbours(sizes, split_bytes), list(schema_names(metadata.schema.to_arrow_schema()))
        )

    def records_with_numbers(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        numbers: Collection[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        from pipeline.corpus.columnar import parquet_rows

        return parquet_rows(file, columns, start, stop, max_document_bytes, numbers)


class JsonLines(InputFormat):
    """Files of JSON objects, one per line, are cut anywhere; compressed ones are not cut.

    A part is a range of bytes and holds the lines that begin in it. The position is the offset of
    the line's first byte, uncompressed.
    """

    name, title, endings = "jsonl", "JSONL", (".jsonl", ".ndjson", ".jl", ".json")
    has_byte_ranges = True
    asked = "in the first 100 records of a file"

    def cut(self, file: InputFile, split_bytes: int) -> Cut:
        from pipeline.corpus.content import check_compression
        from pipeline.corpus.json_lines import first_keys
        from pipeline.corpus.lines import COMPRESSIONS, open_decompressed
        from pipeline.storage.places import open_input

        with open_input(file.url) as raw:
            check_compression(raw, file.typed_name)
            columns = first_keys(open_decompressed(raw, file.typed_name))
        if file.typed_name.endswith(COMPRESSIONS):
            return Cut([], columns)
        starts = range(0, max(file.size, 1), split_bytes)
        ranges = [(start, min(start + split_bytes, file.size)) for start in starts]
        return Cut([Part(start, stop, stop - start) for start, stop in ranges], columns)

    def records(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        from pipeline.corpus.json_lines import json_rows

        return json_rows(file, start, stop, columns, max_document_bytes)


class Arrow(Columnar):
    """Arrow IPC files are cut between record batches; streams have to be read from their start.

    The position is ``record batch:row``.
    """

    name, title, endings = "arrow", "Arrow", (".arrow", ".feather", ".ipc")

    def cut(self, file: InputFile, split_bytes: int) -> Cut:
        from pipeline.corpus.columnar import open_arrow
        from pipeline.corpus.fields import schema_names
        from pipeline.storage.places import open_input

        with open_input(file.url) as raw:
            reader = open_arrow(raw)
            batches = getattr(reader, "num_record_batches", 0)
            columns = list(schema_names(reader.schema))
        sizes = [file.size // batches] * batches if batches else []
        return Cut(neighbours(sizes, split_bytes), columns)

    def records_with_numbers(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        numbers: Collection[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        from pipeline.corpus.columnar import arrow_rows

        return arrow_rows(file, columns, start, stop, max_document_bytes, numbers)


class Csv(InputFormat):
    """Tables of text with a line of column names, read as a whole; quotes may hold line breaks.

    The position is the number of the row, from 0 on.
    """

    name, title, endings = "csv", "CSV", (".csv",)
    delimiter = ","

    def cut(self, file: InputFile, split_bytes: int) -> Cut:
        from pipeline.corpus.content import check_compression
        from pipeline.corpus.csv_tables import column_names
        from pipeline.corpus.lines import open_decompressed
        from pipeline.storage.places import open_input

        with open_input(file.url) as raw:
            check_compression(raw, file.typed_name)
            return Cut([], column_names(open_decompressed(raw, file.typed_name), self.delimiter))

    def records(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        from pipeline.corpus.csv_tables import table_rows

        return table_rows(file, self.delimiter, columns, max_document_bytes)


class Tsv(Csv):
    """The same with tabs between the columns."""

    name, title, endings = "tsv", "TSV", (".tsv",)
    delimiter = "\t"


class Text(InputFormat):
    """A text file is one document, at position 0."""

    name, title, endings = "text", "text", (".txt", ".text", ".md", ".rst")
    has_columns = False
    is_looked_into = False
    is_data = False

    def records(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        # One byte more tells a text that is too long without reading all of it.
        yield "0", {columns[0]: file.read(max_document_bytes + 1)}


FORMATS: dict[str, InputFormat] = {
    form.name: form for form in (Parquet(), JsonLines(), Arrow(), Csv(), Tsv(), Text())
}
"""By name. This is the only place that lists the formats."""

AUTO = "auto"
"""The value of ``--input-format`` that goes by the files' names."""
if TYPE_CHECKING:
    FormatName: TypeAlias = str
else:
    FormatName = Literal[(AUTO, *FORMATS)]
"""The values of ``--input-format``: AUTO, or the name of a format."""

*_first, _last = (form.title for form in FORMATS.values())
FORMAT_TITLES = f"{', '.join(_first)} or {_last}"
"""All formats, for help texts."""


def input_suffixes() -> tuple[str, ...]:
    """How the names of input files end."""
    return tuple(suffix for form in FORMATS.values() for suffix in form.suffixes)


def file_format(file: InputFile, wanted: FormatName) -> str | None:
    """The name of the format asked for, or of the one that the file's name tells; None if it tells
    none."""
    if wanted != AUTO:
        return wanted
    name = file.typed_name
    return next((key for key, form in FORMATS.items() if name.endswith(form.suffixes)), None)


def known_format(file: InputFile, wanted: FormatName, flag: str) -> str:
    """The format of a file, as :func:`file_format` finds it; there has to be one.

    Args:
        flag: the flag that would tell the format.

    Raises:
        ConfigError: neither the flag nor the file's name tells the format.
    """
    name = file_format(file, wanted)
    if name is None:
        raise ConfigError(f"{flag}: cannot tell what {file.url} holds from its name")
    return name
