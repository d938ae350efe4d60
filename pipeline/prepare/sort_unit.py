"""The first step of a shuffle: neighbouring pieces of input → sorted runs."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import SpooledTemporaryFile

import pyarrow as pa
import xxhash

from pipeline.corpus.documents import (
    Document,
    Reject,
    bad_document,
    read_records,
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
"""Text that goes from Python values to Arrow at a time, with its records:"""
BATCH_RECORDS = 8192
UNIT_BITS = 40
"""A document's place is its unit, then so many bits for its number there."""


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
        name = f"{EXCHANGE}/runs/{self._number:06d}-{len(self.made.runs):04d}.run"
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
            with (
                output.committing(f"{REJECTS}/{number:06d}.jsonl") as path,
                path.open("wb") as file,
            ):
                shutil.copyfileobj(rejected, file)
    return runs.made


@contextmanager
def _readable(split: Split, scratch: Path, report: Callable[[int], None]) -> Iterator[Split]:
    """The split with its file where it can be read: files of the hub are downloaded first."""
    if not is_hub_file(split.file):
        yield split
        return
    with local_copy(split.file, scratch, report) as path:
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
