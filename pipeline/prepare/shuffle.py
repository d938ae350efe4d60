"""One seeded, global shuffle as a sort by random keys: steps that workers do, each committed.

**The rule.** Every document has a 64-bit key: a hash of the seed and of its place in the input
(file name, position) or, with ``deduplicate``, of its text, so that equal texts meet. The shuffled
corpus is the corpus sorted by (key, place). The documents with the lowest keys are the validation
set; each chunk is one of equally wide ranges of the other keys.

**The invariant.** The order is a function of corpus and seed alone. A key does not depend on the
worker, unit or run that its document went through; places grow along the corpus, so that equal keys
keep its order however it is cut; and each key lies in exactly one cell, so that sorted cells, one
after another, are the sorted corpus. The number of workers, kills and resumed runs change nothing.

**The work.** The corpus is too large to sort in memory, so it is sorted in pieces:

1. ``sort_unit`` (:mod:`pipeline.prepare.sort_unit`) reads neighbouring splits and writes *sorted
   runs*, each as large as a worker's memory allows. A run is cut into *cells*, equal ranges of
   keys, the smallest part that is read later.
2. ``write_chunk`` reads from all runs the cells that its range of keys touches, sorts each cell
   once more, and writes it. A chunk is a range of keys, not a number of documents, because every
   worker can then find its documents in all runs without counting anybody else's. Keys are random,
   so that chunks still hold almost equally many: 100,000 documents give or take 300.

**An example** with keys of 4 bits, four cells, two runs, one document for validation, two chunks::

    keys       0-3   4-7   8-11  12-15
    run 0      b:2         a:9   c:13      sorted corpus: b d e a f c
    run 1            d:4   f:11            validation: keys [0, 4): b
                     e:6                   chunk 0: keys [4, 10): d e a; chunk 1: [10, 16): f c

Chunk 0 reads the cells 4-7 and 8-11 of both runs and leaves out f, whose key is not in its range.

**The second level.** Each chunk reads a piece of each run. In a corpus of 10 TB with 160,000 runs
of 64 MB and 40,000 chunks of 256 MB a piece has 1.6 kB: billions of tiny reads. Therefore
``merge_runs`` comes between the steps in large corpora: it merges one cell of a group of runs into
one run, cut into *fine cells*. With 256 cells and groups of 256 runs a merge reads 256 pieces of
256 kB and writes a run of 64 MB, which covers one cell of the keys. A chunk lies in one or two
cells, and reads about 400 kB of each of the 625 merged runs there; never does anybody read a
kilobyte.

This module knows no Ray; :mod:`pipeline.prepare.run` has the workers.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.corpus.documents import Columns
from pipeline.prepare.chunks import chunk_writer
from pipeline.prepare.config import ChunkFormat
from pipeline.prepare.sorted_runs import (
    KEY_BITS,
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
    """The settings that decide the order, and those that cut the work."""

    seed: int
    deduplicate: bool
    columns: Columns
    max_document_bytes: int
    on_bad_document: str
    sort_bytes: int
    """Text that a worker holds and sorts at a time."""
    cells: int
    """Cells, over all keys, of the runs that ``sort_unit`` writes; a power of two."""
    fine_cells: int | None
    """Fine cells per cell, in merged runs; a power of two. None: runs are not merged."""

    @property
    def grid(self) -> Grid:
        """The grid of runs that are not merged, over all keys."""
        return Grid.over(0, KEY_BITS, self.cells)

    def fine_grid(self, cell: int) -> Grid:
        """The grid of merged runs over one cell."""
        assert self.fine_cells is not None
        return Grid.over(self.grid.start(cell), self.grid.width_bits, self.fine_cells)

    @property
    def schema(self) -> pa.Schema:
        """The schema of all runs."""
        return run_schema(self.columns.metadata)


@dataclass
class Source:
    """The counts of an input file, or of a part of it."""

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
    """The result of a unit or of a merge: its runs."""

    runs: list[SortedRun]
    duplicates: DocumentStatistics
    """Documents that were left out because an earlier one has the same text."""
    sources: dict[str, Source] = field(default_factory=dict)
    """By file name."""


@dataclass
class Chunk:
    """A committed chunk, or the validation set."""

    name: str
    documents: DocumentStatistics
    duplicates: DocumentStatistics
    """Documents that were left out because an earlier one has the same text."""
    file_bytes: int
    sha256: str
    """Digest of the file, in hexadecimal."""


def merge_runs(
    name: str,
    runs: Sequence[SortedRun],
    cell: int,
    shuffle: Shuffle,
    output: OutputDirectory,
    report: Callable[[int], None],
) -> Sorted:
    """Commit the documents of one cell of some runs as one run on the fine grid of that cell.

    Args:
        report: called with the bytes of text that were merged.

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

    Args:
        name: of the chunk's file.
        slices: that cover the keys.
        report: called with the bytes of text of each cell that is written.

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
    """The documents with keys in a range, in order; each item is what one cell holds of them.

    Cells without any, which are most in a small corpus, are passed over.
    """
    if not keys:
        return
    ends = np.array([keys.start, keys.stop - 1], np.uint64)
    for part in slices:
        cells = part.grid.cells_of(keys)
        if not cells or not part.runs:
            continue
        for batches in read_cells(output, part.runs, cells, schema):
            rows = sort_rows(batches, schema)
            start = int(np.searchsorted(rows.keys_D, ends[0]))
            stop = int(np.searchsorted(rows.keys_D, ends[1], side="right"))
            if start < stop:
                yield SortedRows(rows.keys_D[start:stop], rows.table, rows.order_D[start:stop])
