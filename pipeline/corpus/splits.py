"""Where a file is cut into splits."""

import io
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import pyarrow.parquet as pq

from pipeline.corpus.columnar import READ_BYTES, open_arrow
from pipeline.corpus.documents import COMPRESSIONS, Format, Split, json_line
from pipeline.corpus.lines import open_decompressed, read_lines
from pipeline.storage.listing import InputFile
from pipeline.storage.output import open_input

EXPANSION = 3
"""Text is about so many times as large as what it was compressed to."""
FIRST_LINES = 100
"""Records of a JSONL file that are asked for the names of their fields."""


class FilePlan(NamedTuple):
    splits: list[Split]
    columns: list[str] | None
    """Names that the file offers; None where it does not tell."""


def whole_file(file: InputFile, file_format: Format) -> Split:
    """A file as one split."""
    compressed = file_format == "parquet" or file.name.endswith(COMPRESSIONS[1:])
    return Split(file, file_format, 0, 0, None, file.size * (EXPANSION if compressed else 1))


def plan_file(file: InputFile, file_format: Format, split_bytes: int) -> FilePlan:
    """Cut a file into splits of about ``split_bytes``, by its content alone.

    A file that cannot be read gets one split; reading that then tells what is wrong.
    """
    whole = FilePlan([whole_file(file, file_format)], None)
    if file_format == "text":
        return whole
    try:
        with open_input(file.url) as raw:
            if file_format == "parquet":
                metadata = pq.ParquetFile(raw).metadata
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
                sizes = [group.total_byte_size for group in groups]
                columns = metadata.schema.to_arrow_schema().names
            elif file_format == "arrow":
                reader = open_arrow(raw)
                batches = getattr(reader, "num_record_batches", None)
                columns = reader.schema.names
                if batches is None:  # a stream has to be read from its start
                    return FilePlan(whole.splits, columns)
                sizes = [file.size // batches] * batches
            else:
                columns = _first_keys(open_decompressed(raw, file.name))
                if file.name.endswith(COMPRESSIONS[1:]):
                    return FilePlan(whole.splits, columns)
                cuts = range(0, max(file.size, 1), split_bytes)
                pieces = [(cut, min(cut + split_bytes, file.size)) for cut in cuts]
                return FilePlan(
                    [Split(file, file_format, i, a, b, b - a) for i, (a, b) in enumerate(pieces)],
                    columns,
                )
    except Exception:  # reading the split meets the same error, and reports it
        return whole
    return FilePlan(_group(file, file_format, sizes, split_bytes) or whole.splits, columns)


def _group(file: InputFile, file_format: Format, sizes: list[int], limit: int) -> list[Split]:
    """Neighbouring row groups or record batches, together at most ``limit`` bytes."""
    splits: list[Split] = []
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            splits.append(Split(file, file_format, len(splits), start, i, total))
            start, total = i, 0
        total += size
    if sizes:
        splits.append(Split(file, file_format, len(splits), start, len(sizes), total))
    return splits


def _first_keys(file: io.BufferedIOBase) -> list[str] | None:
    """Fields of the first records: not all need to have all of them."""
    keys: dict[str, None] = {}
    for offset, line in islice(read_lines(file, 0, None, READ_BYTES), FIRST_LINES):
        with suppress(ValueError, RecursionError):  # reading it tells what is wrong
            record = json_line(offset, line or b"")
            keys |= dict.fromkeys(record if isinstance(record, dict) else ())
    return list(keys) or None
