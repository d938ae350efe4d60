"""Patch shards, read: documents or Arrow record batches, with their patches.

An output directory of ``patch_corpus.py`` holds::

    shards/NAME.arrow     Arrow IPC file, one row per document, in the order of the input
    rejects/NAME.jsonl    records that could not be used: file, position, reason
    summaries/NAME.json   the shard's part of a report, see pipeline/statistics/summary.py
    entries/NAME.json     commits those above: a shard exists once its entry does
    manifest.json         written last: every entry, and what the shards were made from and with

NAME is ``file-split-piece``: the number of the input file, of the split of it, and of the shard of
that split. The columns are those of :mod:`pipeline.shards.format`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from copy import copy

import pyarrow as pa

from model.patcher import Patcher
from model.provenance import EntropyModelIdentity
from pipeline.errors import DamagedShardError, PipelineError, translated
from pipeline.shards.entries import ShardEntry
from pipeline.shards.format import ENTROPIES, OWN_COLUMNS, PatchedDocument, read_documents
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST


class ShardSet:
    """A finished output directory; iterating it gives documents."""

    manifest: Manifest
    entries: list[ShardEntry]
    patcher: Patcher
    """The rule that placed the boundaries."""
    entropy_model: EntropyModelIdentity | None
    """The model that gave the entropies; None if the manifest does not say."""

    def __init__(self, url: str):
        """
        Raises:
            PipelineError: there is no manifest, or one that is damaged or of another format.
        """
        self.output = OutputDirectory(url)
        try:
            self.manifest = read_manifest(self.output, url)
            self.entries = [
                ShardEntry.from_json(values, f"shards[{i}]")
                for i, values in enumerate(self.manifest["shards"])
            ]
            self.patcher = Patcher.from_json(self.manifest["patcher"])
            model = self.manifest.get("entropy_model")
            self.entropy_model = None if model is None else EntropyModelIdentity.from_json(model)
        except (TypeError, ValueError) as error:
            raise PipelineError(f"{url}: {MANIFEST} is damaged: {error}") from error

    def without_entries(self) -> "ShardSet":
        """A copy that lacks all that grows with the number of shards: for workers, which get the
        entry of each shard that they read."""
        alone = copy(self)
        alone.entries = []
        alone.manifest = {
            "format_version": self.manifest["format_version"],
            "patcher": self.manifest["patcher"],
            "columns": self.manifest["columns"],
            "statistics": self.manifest["statistics"],
            "shards": [],
        }
        return alone

    @property
    def statistics(self) -> PatchStatistics:
        return PatchStatistics.from_json(self.manifest["statistics"])

    @property
    def summary(self) -> Summary | None:
        """The part of a report beyond the statistics; None if an earlier release patched.

        Raises:
            PipelineError: it is damaged.
        """
        stored = self.manifest.get("summary")
        with translated(self.output.url, what=f"the summary in {MANIFEST} is damaged"):
            return Summary.from_json(stored) if stored else None

    @property
    def has_entropies(self) -> bool:
        """True if the entropies are stored, so that documents can be re-patched."""
        return ENTROPIES in self.manifest["columns"]

    @property
    def metadata_columns(self) -> list[str]:
        return [name for name in self.manifest["columns"] if name not in OWN_COLUMNS]

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
        with translated(where, DamagedShardError):
            with self.output.open(entry.path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest == entry.sha256:
                yield from self.shard_batches(entry)
        if digest != entry.sha256:
            raise DamagedShardError(
                f"{where}: sha256 is {digest}, the manifest says {entry.sha256}: it is damaged"
            )

    def __iter__(self) -> Iterator[PatchedDocument]:
        for batch in self.batches():
            yield from read_documents(batch)

    def rejects(self) -> Iterator[dict[str, str]]:
        """Records that could not be used: ``file``, ``position``, ``reason``.

        Raises:
            DamagedShardError: a file that holds them is missing or cannot be read; names it.
        """
        for entry in self.entries:
            yield from self.shard_rejects(entry)

    def shard_rejects(self, entry: ShardEntry) -> list[dict[str, str]]:
        """The rejects of one shard.

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


def open_shards(url: str) -> ShardSet:
    """Open a finished shard set: a local directory or a URL.

    Raises:
        PipelineError: there is no manifest, or one that is damaged or of another format.
    """
    return ShardSet(url)
