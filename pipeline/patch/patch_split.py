"""One worker's job: a split of a file, or several small files → committed shards. No Ray in here.

Reading, scoring and writing overlap, each in its own thread. A unit is written as a sequence of
shards; each is committed on its own, and a rerun skips the records of those that are. A file that
cannot be read to its end ends a shard, which keeps the reason, and the next one goes on with the
next file: of the files a, b, c, of which b is broken, one shard holds a and the beginning of b, and
another c.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from model.tokenizer import encode_documents
from pipeline.cli.work_counts import WorkCounts
from pipeline.corpus.documents import (
    Document,
    Reject,
    bad_document,
    read_split,
    rejects_json,
)
from pipeline.corpus.splits import Unit
from pipeline.errors import BadFileError
from pipeline.patch.scoring import AnyEntropyModel, QueuedEntropies, Scorer
from pipeline.patch.shards_config import ShardsConfig
from pipeline.patch.stored import ReadEntropies, StoredEntropies, StoredScorer
from pipeline.patches import PatchedTokens, ends_of, patch_stored
from pipeline.prefetch import prefetch
from pipeline.shards.entries import ShardEntry, commit_entry, entry_path, read_entry, shard_name
from pipeline.shards.format import record_batch, shard_schema
from pipeline.shards.record_batches import BatchWriter
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.checked_json import to_json
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory

BATCH_BYTES = 1 << 20
"""Bytes of text that are scored at a time, and go into one record batch of a shard."""
BATCH_DOCUMENTS = 1 << 16
BATCH_SIDE_BYTES = 32 << 20
"""Documents, and characters of ids and metadata, after which a batch ends, too."""
MOST_REJECTS = 1 << 16
"""Rejects after which a shard is closed: they are held in memory until then."""


AnyScorer = Scorer | StoredScorer
Source = AnyEntropyModel | StoredEntropies
"""The source of entropies: a model, or a column of the input."""


@dataclass
class _Batch:
    """Neighbouring records of a unit."""

    documents: list[Document] = field(default_factory=list)
    rejects: list[tuple[str, Reject]] = field(default_factory=list)
    """With the names of their files."""
    ends_shard: bool = False
    ends_unit: bool = False
    source: str = ""
    """Name of the file that the last record is from; ``error`` is about this file."""
    error: str | None = None


class _ScoredBatch(NamedTuple):
    """A batch, and its documents laid end to end with their entropies."""

    batch: _Batch
    tokens_T: np.ndarray
    lengths_D: np.ndarray
    entropies: QueuedEntropies | ReadEntropies

    def patch(self, scorer: AnyScorer) -> PatchedTokens:
        ends_T = self._ends(scorer)
        h_T = self.entropies.wait()
        return patch_stored(scorer.patcher, h_T, self.lengths_D, self.tokens_T, ends_T)

    def _ends(self, scorer: AnyScorer) -> np.ndarray | None:
        """The tokens with which patches end, if the rule takes them from outside of the text."""
        documents = self.batch.documents
        if scorer.bpe is not None:
            return scorer.bpe.ends([document.text.decode() for document in documents])
        if scorer.patcher.ends_from != "column":
            return None
        given = [d.patch_lengths for d in documents if d.patch_lengths is not None]
        return ends_of(np.concatenate(given))


def patch_unit(
    unit: Unit,
    file_index: int,
    config: ShardsConfig,
    scorer: AnyScorer,
    output: OutputDirectory,
    report: Callable[[int], None],
    count: Callable[[WorkCounts], None] = lambda counts: None,
) -> None:
    """Write and commit the shards of a unit that are not committed yet.

    Args:
        file_index: the number of its first file.
        report: called with the tokens of each pack that is scored.
        count: called with the documents, rejects and time of each batch that is written.

    Raises:
        UnreachableFileError: the file cannot be read now; committed shards stay.
        PipelineError: the job cannot continue.
    """
    piece, skip, broken = 0, 0, 0
    while output.exists(entry_path(shard_name(file_index, unit[0].index, piece))):
        committed = read_entry(output, shard_name(file_index, unit[0].index, piece))
        if committed.last:
            return
        piece, skip = piece + 1, skip + committed.records
        broken += committed.error is not None
    batches = prefetch(_read_batches(unit, config, skip, broken))
    scored = prefetch(_score_batches(batches, scorer, report))
    while True:
        name = shard_name(file_index, unit[0].index, piece)
        if _write_shard(scored, scorer, name, config, output, count).last:
            return
        piece += 1


def give_up(unit: Unit, file_index: int, reason: str, output: OutputDirectory) -> None:
    """Commit that the rest of a unit of one split cannot be read.

    Args:
        reason: what the rest did to those who read it.
    """
    (split,) = unit
    piece = 0
    while output.exists(entry_path(shard_name(file_index, split.index, piece))):
        piece += 1
    name = shard_name(file_index, split.index, piece)
    entry = ShardEntry(name=name, source=split.file.name, last=True, error=reason)
    output.write(entry.summary_path, to_json(Summary().to_json()))
    output.write(entry.rejects_path, rejects_json(entry.source, [], reason))
    commit_entry(output, entry)


Records = Iterator[tuple[InputFile, Document | Reject | BadFileError]]
"""Records with their file; of a file that cannot be read to its end the last one is the error."""


def _records(unit: Unit, config: ShardsConfig, skip: int, broken: int) -> Records:
    """The records of a unit but the first ``skip``, and errors but the first ``broken``."""
    for split in unit:
        try:
            for record in read_split(split, config.columns, config.max_document_bytes):
                if skip:
                    skip -= 1
                else:
                    yield split.file, record
        except BadFileError as error:
            if broken:
                broken -= 1
            else:
                yield split.file, error


def _read_batches(
    unit: Unit, config: ShardsConfig, skip: int = 0, broken: int = 0
) -> Iterator[_Batch]:
    """The records of a unit in batches; where one ends depends on the records alone."""
    batch = _Batch()
    batch_bytes = side_bytes = shard_bytes = shard_rejects = 0
    for file, record in _records(unit, config, skip, broken):
        if isinstance(record, BadFileError):
            if batch.ends_shard:
                yield batch
                batch, batch_bytes, side_bytes = _Batch(), 0, 0
            # What follows begins a shard; if nothing does, this is the unit's last batch.
            batch.source, batch.error, batch.ends_shard = file.name, str(record), True
            shard_bytes = shard_rejects = 0
            continue
        if shard_bytes >= config.shard_bytes or shard_rejects >= MOST_REJECTS:
            batch.ends_shard = True
            shard_bytes = shard_rejects = 0
        is_full = batch_bytes >= BATCH_BYTES or side_bytes >= BATCH_SIDE_BYTES
        if batch.ends_shard or is_full or len(batch.documents) == BATCH_DOCUMENTS:
            yield batch
            batch, batch_bytes, side_bytes = _Batch(), 0, 0
        batch.source = file.name
        if isinstance(record, Document):
            batch.documents.append(record)
            batch_bytes += len(record.text)
            side_bytes += record.side_bytes
            shard_bytes += len(record.text)
        elif config.on_bad_document == "fail":
            raise bad_document(file.url, record)
        else:
            batch.rejects.append((file.name, record))
            shard_rejects += 1
    batch.source = batch.source or unit[-1].file.name
    batch.ends_shard = batch.ends_unit = True
    yield batch


def _score_batches(
    batches: Iterable[_Batch], scorer: AnyScorer, report: Callable[[int], None]
) -> Iterator[_ScoredBatch]:
    for batch in batches:
        tokens_T, lengths_D = encode_documents([document.text for document in batch.documents])
        # Waiting and patching are left to the writer's side: a GPU gets the next batch meanwhile.
        entropies = scorer.queue_documents(batch.documents, tokens_T, lengths_D, report)
        yield _ScoredBatch(batch, tokens_T, lengths_D, entropies)


def _write_shard(
    batches: Iterator[_ScoredBatch],
    scorer: AnyScorer,
    name: str,
    config: ShardsConfig,
    output: OutputDirectory,
    count: Callable[[WorkCounts], None],
) -> ShardEntry:
    """Patch and write batches up to the end of a shard, and commit it."""
    schema = shard_schema(config.keep_columns, entropies=config.keep_entropies)
    statistics, summary = PatchStatistics(), Summary()
    rejects: list[tuple[str, Reject]] = []
    entry = ShardEntry(name=name, source="")
    with ExitStack() as stack:
        writer = None
        for scored in batches:
            batch = scored.batch
            rejects += batch.rejects
            busy = 0.0
            if batch.documents:
                if writer is None:
                    path = stack.enter_context(output.committing(entry.path))
                    writer = stack.enter_context(BatchWriter(path, schema))
                patched = scored.patch(scorer)
                busy = scored.entropies.device_seconds
                rows = record_batch(batch.documents, patched, schema)
                writer.write(rows, int(patched.lengths_D.sum()))
                summary += Summary.of(rows, patched, scorer.patcher, config.keep_columns)
                statistics += PatchStatistics.of(
                    patched.lengths_D, patched.patch_lengths_P, patched.entropies_T
                )
            count(WorkCounts(0, len(batch.documents), len(batch.rejects), busy))
            if batch.ends_shard:
                entry.source, entry.last = batch.source, batch.ends_unit
                entry.error = batch.error
                break
        if writer is not None:
            entry.describe(writer.close())
    summary.reject(reject.reason for _, reject in rejects)
    output.write(entry.summary_path, to_json(summary.to_json()))
    entry.rejects = len(rejects)
    entry.records = statistics.documents + len(rejects)
    entry.statistics = statistics.to_json()
    # The file itself stands among the rejects too, so that they list all that was lost.
    if rejects or entry.error:
        output.write(entry.rejects_path, _rejects_json(rejects, entry))
    commit_entry(output, entry)
    return entry


def _rejects_json(rejects: Iterable[tuple[str, Reject]], entry: ShardEntry) -> bytes:
    lines = [
        rejects_json(source, [reject for _, reject in of_file], None)
        for source, of_file in groupby(rejects, itemgetter(0))
    ]
    return b"".join([*lines, rejects_json(entry.source, [], entry.error)])
