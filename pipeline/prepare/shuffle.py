"""One seeded, global shuffle: three steps that workers do, each of which commits what it made.

Every document gets a 64-bit key, a hash of the seed and of where it stands (file name, position),
or with ``deduplicate`` of its text, so that equal texts meet. The shuffled corpus is the corpus
sorted by key; that is a pure function of corpus and seed, whoever does the work. The lowest keys
are the validation set, a chunk is one of equal ranges of the other keys.

1. ``sort_unit`` (:mod:`pipeline.prepare.sort_unit`): neighbouring pieces of input → sorted runs.
2. ``merge_runs``: a slice of the keys in a group of runs → one run. Only in large corpora: there a
   chunk would otherwise be a few bytes of each of very many runs.
3. ``write_chunk``: a range of keys in all runs → a chunk.

No Ray here; :mod:`pipeline.prepare.job` has the workers.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.corpus.documents import Columns
from pipeline.prepare.chunks import ChunkFormat, chunk_writer
from pipeline.prepare.sorted_runs import (
    Grid,
    SortedRows,
    SortedRun,
    read_cells,
    run_schema,
    sort_rows,
    without_duplicates,
    write_run,
)
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.output import OutputDirectory


@dataclass(frozen=True)
class Shuffle:
    """What decides the outcome, and how the work is cut."""

    seed: int
    deduplicate: bool
    columns: Columns
    max_document_bytes: int
    on_bad_document: str
    sort_bytes: int
    """Text that a worker holds and sorts at a time."""
    cells: int
    """Of the runs that are sorted first, over all keys."""
    fine_cells: int | None
    """Of merged runs, each of which has one of ``cells`` as its range; None: nothing is merged."""

    @property
    def grid(self) -> Grid:
        return Grid.over(0, 64, self.cells)

    def fine_grid(self, cell: int) -> Grid:
        """The grid of merged runs over one cell."""
        assert self.fine_cells is not None
        return Grid.over(self.grid.start(cell), self.grid.width_bits, self.fine_cells)

    @property
    def schema(self) -> pa.Schema:
        return run_schema(self.columns.metadata)


@dataclass
class Source:
    """What came of an input file, or of part of it."""

    documents: DocumentStatistics = field(default_factory=DocumentStatistics)
    rejects: int = 0
    error: str | None = None
    """Why it could not be read to its end."""

    def __add__(self, other: "Source") -> "Source":
        return Source(
            self.documents + other.documents,
            self.rejects + other.rejects,
            self.error or other.error,
        )


@dataclass
class Sorted:
    """What a unit, or a merge, left."""

    runs: list[SortedRun]
    duplicates: DocumentStatistics
    """Dropped."""
    sources: dict[str, Source] = field(default_factory=dict)
    """By file name."""


@dataclass
class Chunk:
    """A committed chunk, or the validation set."""

    name: str
    documents: DocumentStatistics
    duplicates: DocumentStatistics
    """Dropped."""
    file_bytes: int
    sha256: str
    """Of the file."""


def merge_runs(
    name: str,
    runs: Sequence[SortedRun],
    cell: int,
    shuffle: Shuffle,
    output: OutputDirectory,
    report: Callable[[int], None],
) -> Sorted:
    """Commit what runs hold in one cell as one run on the fine grid of that cell.

    Raises:
        PipelineError: a run cannot be read or written.
    """
    (batches,) = read_cells(output, runs, range(cell, cell + 1), shuffle.schema)
    rows, duplicates = _distinct(sort_rows(batches, shuffle.schema), shuffle)
    report(rows.table["text"].nbytes)
    return Sorted([write_run(output, name, shuffle.fine_grid(cell), rows)], duplicates)


def _distinct(rows: SortedRows, shuffle: Shuffle) -> tuple[SortedRows, DocumentStatistics]:
    return without_duplicates(rows) if shuffle.deduplicate else (rows, DocumentStatistics())


@dataclass(frozen=True)
class Slice:
    """Runs on the same grid; the grids of a shuffle's slices together cover all keys."""

    grid: Grid
    runs: list[SortedRun]


def write_chunk(
    name: str,
    keys: range,
    slices: Sequence[Slice],
    shuffle: Shuffle,
    chunk_format: ChunkFormat,
    output: OutputDirectory,
    report: Callable[[int], None],
) -> Chunk:
    """Commit the documents whose keys are in a range, in order, as a chunk.

    Raises:
        PipelineError: a run cannot be read, or the chunk cannot be written.
    """
    documents = duplicates = DocumentStatistics()
    metadata = shuffle.columns.metadata
    with output.committing(name) as path:
        with chunk_writer(path, chunk_format, metadata) as write:
            for cell in _rows_in(keys, slices, shuffle.schema, output):
                rows, dropped = _distinct(cell, shuffle)
                duplicates += dropped
                batch = rows.part(0, len(rows.keys_D))
                written = DocumentStatistics.of(batch["text"])
                documents += written
                write(batch)
                report(written.bytes)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    return Chunk(name, documents, duplicates, size, sha256)


def _rows_in(
    keys: range, slices: Sequence[Slice], schema: pa.Schema, output: OutputDirectory
) -> Iterator[SortedRows]:
    """Documents in a range of keys: a cell at a time, in order."""
    if not keys:
        return
    ends = np.array([keys.start, keys.stop - 1], np.uint64)
    for part in slices:
        first = max(part.grid.cell_of(keys.start), 0)
        last = min(part.grid.cell_of(keys.stop - 1), part.grid.cells - 1)
        if first > last or not part.runs:
            continue
        for batches in read_cells(output, part.runs, range(first, last + 1), schema):
            rows = sort_rows(batches, schema)
            start = int(np.searchsorted(rows.keys_D, ends[0]))
            stop = int(np.searchsorted(rows.keys_D, ends[1], side="right"))
            yield SortedRows(rows.keys_D[start:stop], rows.table, rows.order_D[start:stop])
