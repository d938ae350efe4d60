"""The first step of a shuffle: neighbouring splits of the input → sorted runs."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import SpooledTemporaryFile

import pyarrow as pa
import xxhash

from pipeline.cli.work_counts import WorkCounts
from pipeline.corpus.documents import (
    Document,
    Reject,
    bad_document,
    read_split,
    rejects_json,
)
from pipeline.corpus.prepared import EXCHANGE, REJECTS
from pipeline.corpus.splits import Split
from pipeline.errors import BadFileError
from pipeline.prepare.shuffle import Shuffle, Sorted, Source
from pipeline.prepare.sorted_runs import sort_rows, without_duplicates, write_run
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.download import local_copy
from pipeline.storage.hub import is_hub_file
from pipeline.storage.output import OutputDirectory

BATCH_BYTES = 4 << 20
BATCH_RECORDS = 8192
"""Text and records at most that become one Arrow batch."""
UNIT_BITS = 40
"""A document's place is ``unit << UNIT_BITS | number in the unit``: places grow along the
corpus."""


class _Keys:
    """The key of a document: a hash of its text, or of its position, seeded by its file's name."""

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


class _RunWriter:
    """Holds documents until there are enough to sort, then commits them as a run."""

    def __init__(self, number: int, shuffle: Shuffle, output: OutputDirectory):
        self._number, self._shuffle, self._output = number, shuffle, output
        self._schema = shuffle.schema  # which is made anew each time that it is asked for
        self._batches: list[pa.RecordBatch] = []
        self._held = 0
        """Bytes of the batches; a unit may have a batch for each of thousands of small files."""
        self._keys = _Keys(shuffle)
        self._documents = 0
        self.result = Sorted([], DocumentStatistics())

    def add(self, file: str, documents: Sequence[Document]) -> DocumentStatistics:
        """Take documents of a file; returns their statistics."""
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
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._batches.append(batch)
        self._held += batch.nbytes
        if self._held >= self._shuffle.sort_bytes:
            self.flush()
        return DocumentStatistics.of(batch["text"])

    def flush(self) -> None:
        """Commit what is held as a run."""
        if not self._batches:
            return
        rows = sort_rows(self._batches, self._schema)
        self._batches.clear()
        self._held = 0
        if self._shuffle.deduplicate:
            rows, duplicates = without_duplicates(rows)
            self.result.duplicates += duplicates
        name = f"{EXCHANGE}/runs/{self._number:06d}-{len(self.result.runs):04d}.run"
        self.result.runs.append(write_run(self._output, name, self._shuffle.grid, rows))


Deadly = Mapping[Split, str]
"""By split: how it ends the process that reads it."""


def sort_unit(
    number: int,
    splits: Sequence[Split],
    shuffle: Shuffle,
    output: OutputDirectory,
    scratch: Path,
    report: Callable[[int], None],
    deadly: Deadly | None = None,
    count: Callable[[WorkCounts], None] = lambda counts: None,
) -> Sorted:
    """Commit the documents of some splits as sorted runs, and the other records in ``rejects/``.

    Args:
        number: of the unit; units are numbered in the order of the corpus.
        scratch: local directory for files of the hub while they are read.
        report: called with the bytes of text that were read, and of files that were downloaded.
        count: called with the documents and rejects of each batch.
        deadly: splits that are not read, because reading them ends the process.

    Raises:
        UnreachableFileError: a file cannot be read now.
        BadDocumentError: a document cannot be used, and the job is to stop then.
        PipelineError: the output cannot be written.
    """
    runs = _RunWriter(number, shuffle, output)
    with SpooledTemporaryFile(max_size=BATCH_BYTES) as rejected:
        for split in splits:
            name = split.file.name
            source = runs.result.sources.setdefault(name, Source())
            if deadly and split in deadly:
                source.error = deadly[split]
                rejected.write(rejects_json(name, [], source.error))
                continue
            with readable(split, scratch, report) as at_hand:
                try:
                    for documents, rejects in _batches(at_hand, shuffle):
                        if rejects and shuffle.on_bad_document == "fail":
                            raise bad_document(split.file.url, rejects[0])
                        rejected.write(rejects_json(name, rejects, None))
                        source.rejects += len(rejects)
                        statistics = runs.add(name, documents)
                        source.documents += statistics
                        report(statistics.bytes)
                        count(WorkCounts(0, len(documents), len(rejects)))
                except BadFileError as error:
                    source.error = str(error)
                    # It is among the rejects, too: they list everything that is lost.
                    rejected.write(rejects_json(name, [], source.error))
        runs.flush()
        if rejected.tell():
            rejected.seek(0)
            with (
                output.committing(f"{REJECTS}/{number:06d}.jsonl") as path,
                path.open("wb") as file,
            ):
                shutil.copyfileobj(rejected, file)
    return runs.result


@contextmanager
def readable(split: Split, scratch: Path, report: Callable[[int], None]) -> Iterator[Split]:
    """The split with a file that can be read: files of the hub are downloaded first."""
    if not is_hub_file(split.file):
        yield split
        return
    with local_copy(split.file, scratch, report) as path:
        yield replace(split, file=replace(split.file, url=str(path)))


def _batches(split: Split, shuffle: Shuffle) -> Iterator[tuple[list[Document], list[Reject]]]:
    """The records of a split, some megabytes at a time; a broken file's up to the broken place."""
    documents: list[Document] = []
    rejects: list[Reject] = []
    size = 0
    try:
        for record in read_split(split, shuffle.columns, shuffle.max_document_bytes):
            if isinstance(record, Document):
                documents.append(record)
                size += len(record.text) + record.side_bytes
            else:
                rejects.append(record)
            if size >= BATCH_BYTES or len(documents) + len(rejects) >= BATCH_RECORDS:
                yield documents, rejects
                documents, rejects, size = [], [], 0
    except BadFileError:
        yield documents, rejects
        raise
    yield documents, rejects
