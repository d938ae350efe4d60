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

A *unit* is what a worker does at a time: a split of a large file, or several small files that are
neighbours. A corpus is cut into about SPLITS units, so that all cores and GPUs are busy to the end,
but none is smaller than what is worth the trouble, and none larger than what is asked for. A file
counts as FILE_BYTES more than it holds, because opening it takes time, too. For example, 200,000
files of 50 bytes count as 830 MB: a unit is of 810 KB, and holds 195 of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pipeline.corpus.formats import FORMATS
from pipeline.storage.listing import InputFile

SPLITS = 1024
"""Units that a corpus is cut into, about, as far as they are neither too small nor too large."""
FILE_BYTES = 4096
"""Bytes that opening a file counts as."""
MOST_ALONE = 64
"""Files of a corpus up to which each has shards of its own, however small, so that whoever reads
them can tell the files apart."""


@dataclass(frozen=True, slots=True)
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


Unit: TypeAlias = tuple[Split, ...]
"""What a worker does at a time: one split, or several whole files that are neighbours."""


def size_of_splits(text_bytes: int, files: int, least: int, most: int) -> int:
    """Bytes of text per split that a corpus is cut by; the size of the corpus decides.

    Args:
        text_bytes: estimate for the corpus.
        files: their number.
        least: less is not worth a split of its own.
        most: the limit, which also holds where it is below ``least``.
    """
    return min(max((text_bytes + files * FILE_BYTES) // SPLITS, least), most)


def units_of(plans: Sequence[FilePlan], split_bytes: int) -> list[Unit]:
    """The units of a corpus, in the order of its files: small files share one if they are many."""
    if len(plans) > MOST_ALONE:
        return share(plans, split_bytes)
    return [(split,) for plan in plans for split in plan.splits]


def share(plans: Iterable[FilePlan], split_bytes: int) -> list[Unit]:
    """Units of at most ``split_bytes``, but of one split at least. Files that are cut share none.

    With sizes 3, 4, 20 (cut in two), 2, 9, 1 and units of 10 these are [3, 4], [10], [10], [2],
    [9, 1]: each file goes to the one before, if there is room (and opening a file cost nothing).
    """
    units: list[Unit] = []
    together: list[Split] = []
    size = 0
    for plan in plans:
        first = plan.splits[0]
        if len(plan.splits) > 1 or size + first.size + FILE_BYTES > split_bytes:
            if together:
                units.append(tuple(together))
            together, size = [], 0
        if len(plan.splits) > 1:
            units += [(split,) for split in plan.splits]
        else:
            together.append(first)
            size += first.size + FILE_BYTES
    return [*units, tuple(together)] if together else units


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
