"""The documents that are evaluated, some megabytes at a time: those of text files or of shards."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document, bad_document, check_columns, read_split
from pipeline.corpus.formats import known_format
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import Split, plan_file
from pipeline.errors import (
    BadFileError,
    ConfigError,
    UnreachableFileError,
    translated,
)
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.provenance import with_threshold
from pipeline.patches import recut
from pipeline.shards.format import (
    ENTROPIES,
    PATCH_LENGTHS,
    SAMPLE_ID,
    TEXT,
    read_entropies,
    read_patches,
    read_texts,
)
from pipeline.shards.named import named_set
from pipeline.shards.provenance import provenance_of
from pipeline.shards.sources import source_names
from pipeline.storage.listing import InputFile

BATCH_BYTES = 4 << 20
"""Bytes of text that are scored at a time, about: the last row of a batch is not full."""
BATCH_DOCUMENTS = 1 << 14
LISTED_REJECTS = 100
"""Rejects that are listed with their reasons; the others are counted."""
NO_SOURCE = "(none)"
"""Source of documents in which the column that names it is null."""


@dataclass
class Problems:
    """Documents and files that could not be evaluated."""

    rejects: int = 0
    listed: list[dict[str, str]] = field(default_factory=list)
    """The first rejects: ``file``, ``position``, ``reason``."""
    failures: list[str] = field(default_factory=list)
    """Files that could not be read (to their end), and why."""

    def reject(self, file: str, position: str, reason: str) -> None:
        self.rejects += 1
        if len(self.listed) < LISTED_REJECTS:
            self.listed.append({"file": file, "position": position, "reason": reason})


@dataclass
class Batch:
    """Documents laid end to end, with their names and tokens."""

    sources: list[str]
    ids: list[str]
    tokens_T: np.ndarray
    lengths_D: np.ndarray
    patch_lengths_P: np.ndarray | None = None
    """int64, tokens of each patch; None where they are not known, or not yet."""

    @property
    def text_bytes(self) -> np.ndarray:
        """int64: UTF-8 bytes of each document."""
        return self.lengths_D - 2

    @property
    def patch_counts(self) -> np.ndarray:
        """int64: patches of each document; 0 where there are none."""
        if self.patch_lengths_P is None:
            return np.zeros_like(self.lengths_D)
        ends_D = np.searchsorted(self.patch_lengths_P.cumsum(), self.lengths_D.cumsum()) + 1
        return np.diff(ends_D, prepend=0)


def _joined(batches: list[Batch]) -> Batch:
    """One batch of several, all of which have patches."""
    return Batch(
        [name for batch in batches for name in batch.sources],
        [name for batch in batches for name in batch.ids],
        np.concatenate([batch.tokens_T for batch in batches]),
        np.concatenate([batch.lengths_D for batch in batches]),
        np.concatenate([b.patch_lengths_P for b in batches if b.patch_lengths_P is not None]),
    )


class TextData:
    """Documents of text files."""

    def __init__(self, config: EvaluateConfig):
        """
        Raises:
            ConfigError: there is no such file, its format is not known, or no file has a column.
        """
        self.config = config
        self.inputs = find_inputs(config.input, config.format)
        self.splits = _plan(self.inputs.files, config)
        self.bytes = sum(split.size for split in self.splits)

    def batches(self, problems: Problems) -> Iterator[Batch]:
        """Documents in order, without patches; those that cannot be read go to ``problems``."""
        documents: list[tuple[str, Document]] = []
        size = 0
        for source, document in self._documents(problems):
            if documents and (size >= BATCH_BYTES or len(documents) == BATCH_DOCUMENTS):
                yield _batch(documents)
                documents, size = [], 0
            documents.append((source, document))
            size += len(document.text)
        if documents:
            yield _batch(documents)

    def _documents(self, problems: Problems) -> Iterator[tuple[str, Document]]:
        for split in self.splits:
            try:
                yield from self._split_documents(split, problems)
            except BadFileError as error:
                problems.failures.append(f"{split.file.url}: {error}")
            except UnreachableFileError as error:
                problems.failures.append(str(error))

    def _split_documents(self, split: Split, problems: Problems) -> Iterator[tuple[str, Document]]:
        name = split.file.name
        for record in read_split(split, self.config.columns, self.config.max_document_bytes):
            if isinstance(record, Document):
                by = record.metadata[0] if record.metadata else name
                yield NO_SOURCE if by is None else by, record
            elif self.config.on_bad_document == "fail":
                raise bad_document(split.file.url, record)
            else:
                problems.reject(name, record.position, record.reason)


def _batch(documents: list[tuple[str, Document]]) -> Batch:
    sources, of_source = zip(*documents, strict=True)
    tokens_T, lengths_D = encode_documents([document.text for document in of_source])
    ids = [document.sample_id for document in of_source]
    return Batch(list(sources), ids, tokens_T, lengths_D)


def _plan(files: list[InputFile], config: EvaluateConfig) -> list[Split]:
    """Each file as one split."""
    known = [(file, known_format(file, config.format, "--input-format")) for file in files]
    plans = [plan_file(file, name, split_bytes=1 << 62) for file, name in known]
    check_columns(plans, config.columns, "--by")
    return [split for plan in plans for split in plan.splits]


class ShardData:
    """Documents of a finished shard set, with their patches."""

    def __init__(self, config: EvaluateConfig):
        """
        Raises:
            ConfigError: there is no such shard set, it lacks the column that names the source, or
                the entropies to re-patch it.
        """
        self.config = config
        self.shards = named_set(config.shards or "")
        metadata = self.shards.metadata_columns
        if config.by is not None and config.by not in metadata:
            raise ConfigError(
                f"--by: the shards have no column {config.by!r} of metadata; there are: "
                f"{', '.join(metadata) or 'none (patch_corpus.py --keep-columns copies them)'}"
            )
        if config.threshold is not None and not self.shards.has_entropies:
            raise ConfigError(
                "--threshold: the shards were written without entropies and can't be re-patched; "
                "leave it out, or patch the corpus with them"
            )
        self.patcher = with_threshold(self.shards.patcher, config.threshold)
        self.provenance = provenance_of(self.shards, self.patcher)
        self.bytes = self.shards.statistics.bytes

    def batches(self) -> Iterator[Batch]:
        """Documents in order.

        Raises:
            PipelineError: a shard cannot be read.
        """
        waiting: list[Batch] = []
        for batch in self._record_batches():
            waiting.append(batch)
            if sum(len(each.tokens_T) for each in waiting) >= BATCH_BYTES:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)

    def _record_batches(self) -> Iterator[Batch]:
        columns = [SAMPLE_ID, TEXT]
        columns += [PATCH_LENGTHS] if self.config.threshold is None else [ENTROPIES]
        columns += [self.config.by] if self.config.by else []
        where = f"--shards {self.shards.output.url}"
        with translated(where, advice="patch_corpus.py --verify tells what is damaged"):
            entries = self.shards.entries
            files = [file["name"] for file in self.shards.manifest.get("sources", [])]
            for shard, source in zip(entries, source_names(entries, files), strict=True):
                if shard.sha256 is not None:
                    for batch in self.shards.shard_batches(shard, columns):
                        yield self._batch(batch, source)

    def _batch(self, rows: pa.RecordBatch, source: str) -> Batch:
        tokens_T, lengths_D = encode_documents(read_texts(rows))
        if self.config.threshold is None:
            patched = read_patches(rows)
        else:
            patched = recut(self.patcher, read_entropies(rows)[0], lengths_D)
        sources = [source] * rows.num_rows
        if self.config.by:
            sources = [NO_SOURCE if s is None else s for s in rows[self.config.by].to_pylist()]
        ids = rows[SAMPLE_ID].to_pylist()
        return Batch(sources, ids, tokens_T, lengths_D, patched.patch_lengths_P)
