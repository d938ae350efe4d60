"""Patch shards: what is in one, how it is written, found again, and checked.

An output directory holds::

    shards/NAME.arrow     Arrow IPC file, one row a document, in the order of the input
    rejects/NAME.jsonl    records that could not be used: file, position, reason
    summaries/NAME.json   what a report tells of the shard, see pipeline/statistics/summary.py
    entries/NAME.json     commits those above: a shard exists once its entry does
    manifest.json         written last: every entry, and what the shards were made from and with

NAME is ``file-split-piece``: the number of the input file, of the split of it, and of the shard of
that split. Columns: ``sample_id: string``, ``text: string``, ``entropies: list<float16>`` (nats,
one a token; left out if so asked), ``patch_lengths: list<int32>`` (tokens), then metadata columns
as strings.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from model.patcher import Patcher
from pipeline.corpus.documents import Document
from pipeline.errors import DamagedShardError, PipelineError
from pipeline.patch.scoring import Scored
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.output import OutputDirectory, to_json

FORMAT_VERSION = 1
EXPORT = "export"
"""The stage that manifests of exports name."""
OWN_COLUMNS = ("sample_id", "text", "entropies", "patch_lengths")
"""Columns of every shard; others are metadata."""
MANIFEST = "manifest.json"
COMPRESSION = "zstd"
SUMMARIES_AT_ONCE = 256
"""Read at a time: each is some tens of kilobytes."""


def shard_schema(metadata: Sequence[str] = (), *, entropies: bool = True) -> pa.Schema:
    """Schema of a shard with these metadata columns."""
    columns = [pa.field("sample_id", pa.string()), pa.field("text", pa.string())]
    if entropies:
        columns.append(pa.field("entropies", pa.list_(pa.float16())))
    columns.append(pa.field("patch_lengths", pa.list_(pa.int32())))
    return pa.schema([*columns, *(pa.field(name, pa.string()) for name in metadata)])


def record_batch(
    documents: Sequence[Document], scored: Scored, schema: pa.Schema
) -> pa.RecordBatch:
    """Rows of a shard from scored documents."""
    columns = {
        "sample_id": pa.array([document.sample_id for document in documents], pa.string()),
        "text": pa.array([document.text for document in documents], pa.string()),
        "entropies": _lists(scored.lengths_D, pa.array(scored.entropies_T)),
        "patch_lengths": _lists(scored.patches_D, pa.array(scored.patch_lengths_P, pa.int32())),
    }
    first_metadata = len(schema) - len(documents[0].metadata)
    for i, name in enumerate(schema.names[first_metadata:]):
        columns[name] = pa.array([document.metadata[i] for document in documents], pa.string())
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _lists(lengths_D: np.ndarray, values: pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], lengths_D.cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)


def ipc_options() -> pa.ipc.IpcWriteOptions:
    """How shards are compressed; in one thread, because each worker has one core."""
    return pa.ipc.IpcWriteOptions(compression=COMPRESSION, use_threads=False)


@dataclass
class ShardEntry:
    """What is known of one shard: the commit record, and a line of the manifest."""

    name: str
    source: str
    """Name of the input file."""
    records: int = 0
    """Records of the split that this shard stands for: documents and rejects."""
    rejects: int = 0
    last: bool = False
    """Whether the split ends with this shard."""
    error: str | None = None
    """Why the file could not be read to its end."""
    shard_bytes: int = 0
    """Size of the Arrow file; there is none if there was no document."""
    sha256: str | None = None
    """Of the Arrow file."""
    statistics: dict[str, Any] = field(default_factory=lambda: PatchStatistics().to_json())
    """:class:`PatchStatistics`: documents, bytes, patches and histograms."""

    @property
    def path(self) -> str:
        return f"shards/{self.name}.arrow"

    @property
    def rejects_path(self) -> str:
        return f"rejects/{self.name}.jsonl"

    @property
    def summary_path(self) -> str:
        return f"summaries/{self.name}.json"

    @property
    def patch_statistics(self) -> PatchStatistics:
        return PatchStatistics.from_json(self.statistics)


def shard_name(file_index: int, split_index: int, piece: int) -> str:
    return f"{file_index:06d}-{split_index:05d}-{piece:05d}"


def entry_path(name: str) -> str:
    return f"entries/{name}.json"


def commit_entry(output: OutputDirectory, entry: ShardEntry) -> None:
    """The atomic step that makes a shard exist; its files have to be in place."""
    output.write(entry_path(entry.name), to_json(asdict(entry)))


def read_entry(output: OutputDirectory, name: str) -> ShardEntry:
    return ShardEntry(**output.read_json(entry_path(name)))


def read_entries(output: OutputDirectory) -> dict[str, ShardEntry]:
    """All committed entries, by name."""
    entries = (ShardEntry(**values) for values in output.read_all_json("entries").values())
    return {entry.name: entry for entry in entries}


def write_manifest(
    output: OutputDirectory, made_with: dict[str, Any], entries: Sequence[ShardEntry]
) -> None:
    """Close the shard set. ``made_with``: tokenizer, model, rule, sources, configuration."""
    total = sum((entry.patch_statistics for entry in entries), PatchStatistics())
    summary = read_summary(output, entries)
    manifest = {
        "format_version": FORMAT_VERSION,
        **made_with,
        "statistics": total.to_json(),
        "summary": None if summary is None else summary.to_json(),
        "shards": [asdict(entry) for entry in entries],
    }
    output.write(MANIFEST, to_json(manifest))


def read_summary(output: OutputDirectory, entries: Sequence[ShardEntry]) -> Summary | None:
    """The sum of the shards' summaries; None if one has none, as earlier releases wrote them."""
    names = [f"{entry.name}.json" for entry in entries]
    if not set(names) <= set(output.names("summaries")):
        return None
    total = Summary()
    for start in range(0, len(names), SUMMARIES_AT_ONCE):
        part = names[start : start + SUMMARIES_AT_ONCE]
        for values in output.read_all_json("summaries", part).values():
            total += Summary.from_json(values)
    return total


class PatchedDocument(NamedTuple):
    """One row of a shard."""

    sample_id: str
    text: str
    entropies: np.ndarray | None
    """float16, nats, one for each token (BOS, bytes, EOS); None if they were left out."""
    patch_lengths: np.ndarray
    """int32, tokens; sums to ``bytes + 2``."""

    def patches(self) -> list[bytes]:
        """The text cut at the boundaries; BOS and EOS are left out of the first and last."""
        data = self.text.encode()
        cuts = np.clip(np.concatenate([[0], self.patch_lengths.cumsum()]) - 1, 0, len(data))
        return [data[a:b] for a, b in pairwise(cuts)]


class ShardSet:
    """A finished output directory; iterating it gives documents."""

    def __init__(self, url: str):
        """
        Raises:
            PipelineError: there is no manifest, or one of another format.
        """
        self.output = OutputDirectory(url)
        try:
            self.manifest = self.output.read_json(MANIFEST)
        except FileNotFoundError as error:
            raise PipelineError(
                f"{url}: no {MANIFEST}: not a shard set, or its job has not finished; "
                "run the same command again to finish it"
            ) from error
        if not isinstance(self.manifest, dict) or "shards" not in self.manifest:
            raise PipelineError(f"{url}: {_other_kind(self.manifest)}, not a shard set")
        if (version := self.manifest.get("format_version")) != FORMAT_VERSION:
            raise PipelineError(
                f"{url}: format version {version} is not {FORMAT_VERSION}, the one that this "
                "release reads"
            )
        try:
            self.entries = [ShardEntry(**entry) for entry in self.manifest["shards"]]
        except TypeError as error:
            raise PipelineError(f"{url}: {MANIFEST} is damaged: {error}") from error

    def light(self) -> "ShardSet":
        """The same without what grows with the number of shards: for workers, which get the entry
        of each shard that they read."""
        kept = copy(self)
        kept.entries = []
        kept.manifest = {name: self.manifest[name] for name in ("patcher", "columns")}
        return kept

    @property
    def statistics(self) -> PatchStatistics:
        return PatchStatistics.from_json(self.manifest["statistics"])

    @property
    def summary(self) -> Summary | None:
        """What a report tells beyond the statistics; None if an earlier release patched.

        Raises:
            PipelineError: it is damaged.
        """
        kept = self.manifest.get("summary")
        try:
            return Summary.from_json(kept) if kept else None
        except Exception as error:  # of whatever is wrong in it
            raise PipelineError(
                f"{self.output.url}: the summary in {MANIFEST} is damaged: {error}"
            ) from error

    @property
    def patcher(self) -> Patcher:
        """The rule that placed the boundaries."""
        return Patcher.from_json(self.manifest["patcher"])

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, as Arrow record batches."""
        for entry in self.entries:
            if entry.sha256 is not None:
                yield from self.shard_batches(entry, columns)

    def shard_batches(
        self, entry: ShardEntry, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of one shard; its file has to exist (``entry.sha256``)."""
        with self.output.open(entry.path) as file:
            reader = pa.ipc.open_file(file)
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                yield batch if columns is None else batch.select(list(columns))

    def checked_batches(self, entry: ShardEntry) -> Iterator[pa.RecordBatch]:
        """The rows of one shard, once its file is known to be the one that was written.

        Raises:
            DamagedShardError: it is missing, another file, or cannot be read; names it.
        """
        where = self.output.locate(entry.path)
        try:
            with self.output.open(entry.path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest == entry.sha256:
                yield from self.shard_batches(entry)
        except Exception as error:  # each filesystem has its own; all mean the same here
            raise DamagedShardError(f"{where}: cannot be read: {error}") from error
        if digest != entry.sha256:
            raise DamagedShardError(
                f"{where}: sha256 is {digest}, the manifest says {entry.sha256}: it is damaged"
            )

    def __iter__(self) -> Iterator[PatchedDocument]:
        for batch in self.batches():
            has_entropies = "entropies" in batch.schema.names
            for row in range(batch.num_rows):
                yield PatchedDocument(
                    batch["sample_id"][row].as_py(),
                    batch["text"][row].as_py(),
                    batch["entropies"][row].values.to_numpy() if has_entropies else None,
                    batch["patch_lengths"][row].values.to_numpy(),
                )

    def rejects(self) -> Iterator[dict[str, str]]:
        """Records that could not be used: ``file``, ``position``, ``reason``."""
        for entry in self.entries:
            yield from self.shard_rejects(entry)

    def shard_rejects(self, entry: ShardEntry) -> list[dict[str, str]]:
        """Those of one shard.

        Raises:
            DamagedShardError: the file that holds them is missing or cannot be read; names it.
        """
        if not entry.rejects and not entry.error:
            return []
        try:
            lines = self.output.read(entry.rejects_path).splitlines()
            return [json.loads(line) for line in lines]
        except (PipelineError, OSError, ValueError) as error:
            where = self.output.locate(entry.rejects_path)
            raise DamagedShardError(f"{where}: cannot be read: {error}") from error

    def verify(self) -> Iterator[str]:
        """What is wrong with the shards, if anything: see :mod:`pipeline.shards.verify`."""
        from pipeline.shards.verify import verify  # which reads shards

        return verify(self)


def _other_kind(manifest: Any) -> str:
    """What a manifest that tells of no shards is of."""
    if isinstance(manifest, dict) and "chunks" in manifest:
        return "a prepared corpus, which jobs/patch_corpus.py patches"
    if is_export(manifest):
        return "an export"
    return f"its {MANIFEST} is another program's"


def is_export(manifest: Any) -> bool:
    """Whether ``export_shards.py`` wrote a manifest."""
    return isinstance(manifest, dict) and manifest.get("stage") == EXPORT


def open_shards(url: str) -> ShardSet:
    """Open a finished shard set: a local directory or a URL."""
    return ShardSet(url)
