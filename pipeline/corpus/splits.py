"""Splits: the parts of files that workers read, each on its own.

A split of a Parquet file is some of its row groups, of an Arrow file some of its record batches, of
a plain JSONL file a range of bytes, of any other file the whole of it. Every record lies in exactly
one split of its file, and the splits of a file in order hold its records in order. Where a file is
cut follows from its content and the size asked for, never from the number of workers: so a resumed
run, or one on another cluster, finds the same splits.

For example, a JSONL file of three lines of 40 bytes, cut at 50 bytes, has the splits [0, 50),
[50, 100), [100, 120). A line belongs to the split in which its first byte lies (at 0, 40, 80): the
first split reads on to byte 80 to finish the second line, the second begins with the line at 80,
and the third holds nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.corpus.formats import FORMATS
from pipeline.storage.listing import InputFile


@dataclass(frozen=True)
class Split:
    """The part of a file that one worker reads."""

    file: InputFile
    format: str
    """A name in FORMATS."""
    index: int
    """Place among the splits of the file."""
    start: int
    stop: int | None
    """First and last+1 row group, record batch or byte; None: to the end."""
    size: int
    """Estimate of the bytes of text."""


class FilePlan(NamedTuple):
    """How a file is read."""

    splits: list[Split]
    """In order; at least one."""
    columns: list[str] | None
    """Names that the file offers; None where it does not tell."""


def whole_file(file: InputFile, file_format: str) -> Split:
    """A file as one split."""
    return Split(file, file_format, 0, 0, None, FORMATS[file_format].text_bytes(file))


def plan_file(file: InputFile, file_format: str, split_bytes: int) -> FilePlan:
    """Cut a file into splits of about ``split_bytes`` bytes of text.

    A file that cannot be read gets one split; reading that then tells what is wrong.
    """
    whole = [whole_file(file, file_format)]
    try:
        parts, columns = FORMATS[file_format].cut(file, split_bytes)
    except Exception:  # reading the split meets the same error, and reports it
        return FilePlan(whole, None)
    splits = [Split(file, file_format, i, *part) for i, part in enumerate(parts)]
    return FilePlan(splits or whole, columns)
