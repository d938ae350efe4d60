"""An input format: how files of it are recognised, cut into splits, and read. The formats that
there are: :mod:`pipeline.corpus.formats`.

A format whose files are read as a whole needs no more than names and one method::

    class Pages(InputFormat):
        \"\"\"A document per form feed.\"\"\"

        name, title, endings = "pages", "pages", (".pages",)
        has_columns = False

        def records(self, file, start, stop, columns, max_document_bytes):
            for number, page in enumerate(file.read().split(b"\\f")):
                yield str(number), {columns[0]: page}
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from pipeline.storage.listing import InputFile

# Commands read the table of formats to parse their flags: methods import what reads files.

EXPANSION = 3
"""Text is about so many times as large as what it was compressed to."""

Record: TypeAlias = tuple[str, dict[str, Any] | str]
"""Position, and the fields by name or the reason why there are none."""


class Part(NamedTuple):
    """The part of a file that becomes one split."""

    start: int
    stop: int | None
    """First and last+1 row group, record batch or byte; None: to the end."""
    size: int
    """Estimate of the bytes of text."""


class Cut(NamedTuple):
    """The parts of a file, and the names of its columns if it tells them."""

    parts: list[Part]
    """In order, every record in one of them; none if the file is read as a whole."""
    columns: list[str] | None
    """Names that the file offers; None where it does not tell."""


class InputFormat(ABC):
    """One format of input files."""

    name: ClassVar[str]
    """The value of ``--input-format``."""
    title: ClassVar[str]
    """The name in help texts."""
    endings: ClassVar[tuple[str, ...]]
    """Endings of the files' names, in lower case, without the ending of a compression."""
    is_compressible: ClassVar[bool] = True
    """True if files may be compressed as a whole, as the end of their names tells."""
    has_columns: ClassVar[bool] = True
    """False: a record is a text and nothing else, whatever ``--text-column`` is."""
    is_columnar: ClassVar[bool] = False
    """True if files have typed columns, such as lists of numbers."""
    has_byte_ranges: ClassVar[bool] = False
    """True if parts are ranges of bytes, and a position is the offset of a record's first byte."""
    asked: ClassVar[str] = ""
    """The part of a file in which the names of its columns are looked for, if others may follow."""
    is_looked_into: ClassVar[bool] = True
    """False: a file is never cut and offers no columns, so that its name and size say all."""
    is_data: ClassVar[bool] = True
    """False: in a dataset's repository, files of this format are about the data."""

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        """How names of files in this format end."""
        from pipeline.corpus.lines import COMPRESSIONS

        compressions = ("", *COMPRESSIONS) if self.is_compressible else ("",)
        return tuple(end + compression for end in self.endings for compression in compressions)

    def text_bytes(self, file: InputFile) -> int:
        """Estimate of the bytes of text in a whole file."""
        from pipeline.corpus.lines import COMPRESSIONS

        return file.size * (EXPANSION if file.typed_name.endswith(COMPRESSIONS) else 1)

    def cut(self, file: InputFile, split_bytes: int) -> Cut:
        """Cut a file into parts of about ``split_bytes`` of text.

        It follows from the file's content and ``split_bytes`` alone: resumed runs and different
        clusters have to cut in the same places. Any exception means that the file is not cut.
        """
        return Cut([], None)

    @abstractmethod
    def records(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        """The records of a part, in order and in bounded memory.

        Args:
            file: at its beginning, decompressed if the format is compressible.
            start: of the part.
            stop: of the part.
            columns: names of the fields that are wanted; the first is the text.
            max_document_bytes: longer texts are rejected: none has to be read further than that.

        Yields:
            position and fields of each record, strings as ``str`` or, unchecked, as UTF-8
            ``bytes``; or position and reason of one that cannot be used. A position names one
            record of a file and is the same however the file is cut: shuffles and ids follow it.

        Raises:
            BadFileError: the rest cannot be read. Errors of Arrow, gzip, zstd and UTF-8 need not
                be translated.
        """

    def records_with_numbers(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        numbers: Collection[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        """As :meth:`records`; columns named in ``numbers`` hold a list of numbers per record, which
        a format may give as an array."""
        return self.records(file, start, stop, columns, max_document_bytes)


class Columnar(InputFormat):
    """A format whose columns have types. Its own compressions work column by column."""

    is_compressible = False
    is_columnar = True

    def records(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        return self.records_with_numbers(file, start, stop, columns, (), max_document_bytes)


def neighbours(sizes: Sequence[int], limit: int) -> list[Part]:
    """Neighbouring row groups or record batches, together at most ``limit`` bytes.

    With sizes 4, 4, 5, 9, 1 and a limit of 8 the parts are [0, 2), [2, 3), [3, 4), [4, 5): one that
    is too large is alone.
    """
    parts: list[Part] = []
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            parts.append(Part(start, i, total))
            start, total = i, 0
        total += size
    if sizes:
        parts.append(Part(start, len(sizes), total))
    return parts
