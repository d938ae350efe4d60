"""One seeded, global shuffle: three steps that workers do, each of which commits what it made.

Every document gets a 64-bit key, a hash of the seed and of where it stands (file name, position),
or with ``deduplicate`` of its text, so that equal texts meet. The shuffled corpus is the corpus
sorted by key; that is a pure function of corpus and seed, whoever does the work. The lowest keys
are the validation set, a chunk is one of equal ranges of the other keys.

1. ``sort_unit``: neighbouring pieces of input → sorted runs.
2. ``merge_runs``: a slice of the keys in a group of runs → one run. Only in large corpora: there a
   chunk would otherwise be a few bytes of each of very many runs.
3. ``write_chunk``: a range of keys in all runs → a chunk.

No Ray here; :mod:`pipeline.preparing` has the workers.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.chunks import ChunkFormat, chunk_writer
from pipeline.documents import (
    Columns,
    Document,
    Reject,
    Split,
    bad_document,
    read_records,
    rejects_json,
)
from pipeline.download import fetched
from pipeline.errors import BadFileError
from pipeline.hub import is_hub_file
from pipeline.sorted_runs import (
    Grid,
    SortedRows,
    SortedRun,
    read_cells,
    run_schema,
    sort_rows,
    without_duplicates,
    write_run,
)
from pipeline.statistics import DocumentStatistics
from pipeline.storage import OutputDirectory

BATCH_BYTES = 4 << 20
"""Text that goes from Python values to Arrow at a time, with its records:"""
BATCH_RECORDS = 8192
UNIT_BITS = 40
"""A document's place is its unit, then so many bits for its number there."""


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


class _Keys:
    """Keys of documents."""

    def __init__(self, shuffle: Shuffle):
        self._seed, self._by_text = shuffle.seed, shuffle.deduplicate
        self._file, self._file_seed = "", 0

    def __call__(self, file: str, document: Document) -> int:
        if self._by_text:
            return xxhash.xxh3_64_intdigest(document.text, self._seed)
        if file != self._file:
            self._file = file
            self._file_seed = xxhash.xxh3_64_intdigest(file.encode(), self._seed)
        return xxhash.xxh3_64_intdigest(document.position.encode(), self._file_seed)


class _RunMaker:
    """Holds documents until there are enough to sort, then commits them as a run."""

    def __init__(self, number: int, shuffle: Shuffle, output: OutputDirectory):
        self._number, self._shuffle, self._output = number, shuffle, output
        self._held: list[pa.RecordBatch] = []
        self._keys = _Keys(shuffle)
        self._documents = 0
        self.made = Sorted([], DocumentStatistics())

    def add(self, file: str, documents: Sequence[Document]) -> DocumentStatistics:
        """Take documents of a file; gives their statistics."""
        first = (self._number << UNIT_BITS) + self._documents
        self._documents += len(documents)
        columns = [
            pa.array([self._keys(file, document) for document in documents], pa.uint64()),
            pa.array(range(first, first + len(documents)), pa.uint64()),
            pa.array([document.text for document in documents], pa.large_binary()),
            pa.array([document.sample_id for document in documents], pa.large_string()),
        ]
        for i in range(len(self._shuffle.columns.metadata)):
            values = [document.metadata[i] for document in documents]
            columns.append(pa.array(values, pa.large_string()))
        batch = pa.RecordBatch.from_arrays(columns, schema=self._shuffle.schema)
        self._held.append(batch)
        if sum(held.nbytes for held in self._held) >= self._shuffle.sort_bytes:
            self.flush()
        return DocumentStatistics.of(batch["text"])

    def flush(self) -> None:
        """Commit what is held."""
        if not self._held:
            return
        rows = sort_rows(self._held, self._shuffle.schema)
        self._held.clear()
        if self._shuffle.deduplicate:
            rows, dropped = without_duplicates(rows)
            self.made.duplicates += dropped
        name = f"exchange/runs/{self._number:06d}-{len(self.made.runs):04d}.run"
        self.made.runs.append(write_run(self._output, name, self._shuffle.grid, rows))


def sort_unit(
    number: int,
    splits: Sequence[Split],
    shuffle: Shuffle,
    output: OutputDirectory,
    scratch: Path,
    report: Callable[[int], None],
) -> Sorted:
    """Commit the documents of some splits as sorted runs, and ``rejects/`` of the others.

    Args:
        number: of the unit; units are numbered as the corpus goes.
        scratch: local directory for files of the hub while they are read.
        report: called with bytes of text, and of downloads, as they are done.

    Raises:
        UnreachableFileError: a file cannot be read now.
        BadDocumentError: a document cannot be used, and the job is to stop at such.
        PipelineError: the output cannot be written.
    """
    runs = _RunMaker(number, shuffle, output)
    with SpooledTemporaryFile(max_size=BATCH_BYTES) as rejected:
        for split in splits:
            name = split.file.name
            source = runs.made.sources.setdefault(name, Source())
            with _readable(split, scratch, report) as readable:
                try:
                    for documents, rejects in _batches(readable, shuffle):
                        if rejects and shuffle.on_bad_document == "fail":
                            raise bad_document(split.file.url, rejects[0])
                        rejected.write(rejects_json(name, rejects, None))
                        source.rejects += len(rejects)
                        statistics = runs.add(name, documents)
                        source.documents += statistics
                        report(statistics.bytes)
                except BadFileError as error:
                    source.error = str(error)
                    # Among the rejects too, so that they tell all that was lost.
                    rejected.write(rejects_json(name, [], source.error))
        runs.flush()
        if rejected.tell():
            rejected.seek(0)
            with output.committing(f"rejects/{number:06d}.jsonl") as path, path.open("wb") as file:
                shutil.copyfileobj(rejected, file)
    return runs.made


@contextmanager
def _readable(split: Split, scratch: Path, report: Callable[[int], None]) -> Iterator[Split]:
    """The split with its file where it can be read: files of the hub are downloaded first."""
    if not is_hub_file(split.file):
        yield split
        return
    with fetched(split.file, scratch, report) as path:
        yield replace(split, file=replace(split.file, url=str(path)))


def _batches(split: Split, shuffle: Shuffle) -> Iterator[tuple[list[Document], list[Reject]]]:
    """The records of a split, some megabytes at a time; up to where it is broken, if it is."""
    documents: list[Document] = []
    rejects: list[Reject] = []
    size = 0
    try:
        for record in read_records(split, shuffle.columns, shuffle.max_document_bytes):
            if isinstance(record, Document):
                documents.append(record)
                size += len(record.text)
            else:
                rejects.append(record)
            if size >= BATCH_BYTES or len(documents) + len(rejects) >= BATCH_RECORDS:
                yield documents, rejects
                documents, rejects, size = [], [], 0
    except BadFileError:
        yield documents, rejects
        raise
    yield documents, rejects


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
