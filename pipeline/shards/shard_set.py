"""Patch shards, read: documents or Arrow record batches, with their patches.

An output directory of ``patch_corpus.py`` holds::

    shards/NAME.arrow     Arrow IPC file, one row per document, in the order of the input
    rejects/NAME.jsonl    records that could not be used: file, position, reason
    summaries/NAME.json   the shard's part of a report, see pipeline/statistics/summary.py
    entries/NAME.json     commits those above: a shard exists once its entry does
    entries.arrow         all entries in columns, without histograms
    batches.arrow         place, size and hash of every record batch of every shard
    tokenizer/            the tokenizer of the bpe rule
    manifest.json         written last: what the shards were made from and with, and their sums

NAME is ``file-split-piece``: the number of the input file, of the split of it, and of the shard of
that split. Small files may share shards, which then have the number of the first of these files.
The columns are those of :mod:`pipeline.shards.format`.

Whatever is read of shards goes through :meth:`ShardSet.read_batch` and
:meth:`ShardSet.shard_batches`, which compare each record batch with its hash before anything in it
is used.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cache, cached_property, lru_cache

import pyarrow as pa

from model.patcher import Patcher
from model.provenance import EntropyModelIdentity
from pipeline.bpe.byte_level import BPE
from pipeline.errors import DamagedShardError, PipelineError, translated
from pipeline.shards.entries import Shard, ShardEntry, shard_path
from pipeline.shards.format import (
    ENTROPIES,
    OWN_COLUMNS,
    PatchedDocument,
    read_documents,
    shard_schema,
)
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.record_batches import WAY_ON, BatchIndex, find_batches, read_batches
from pipeline.shards.tables import EntryTables, ShardArrays
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST

TOKENIZER_DIRECTORY = "tokenizer"
TOKENIZER_FILE = f"{TOKENIZER_DIRECTORY}/tokenizer.json"
"""The tokenizer whose tokens are the patches of a set, by the ``bpe`` rule."""
CACHED_FOOTERS = 4096
"""Shards of format version 1 whose record batches are kept in mind."""


class ShardSet:
    """A finished output directory; iterating it gives documents."""

    manifest: Manifest
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
            self._tables = self._read_tables()
            self.patcher = Patcher.from_json(self.manifest["patcher"])
            if self.schema.names != self.manifest["columns"]:
                raise ValueError(f"columns: are not in the order {self.schema.names}")
            model = self.manifest.get("entropy_model")
            self.entropy_model = None if model is None else EntropyModelIdentity.from_json(model)
        except (TypeError, ValueError) as error:
            raise PipelineError(f"{url}: {MANIFEST} is damaged: {error}") from error

    def _read_tables(self) -> EntryTables | None:
        """The entries in columns; None if the manifest itself holds them."""
        if "entries" in self.manifest:
            return EntryTables(self.output, self.manifest["entries"], self.manifest["batches"])
        entries = self.manifest.pop("shards")
        parsed = (ShardEntry.from_json(values, f"shards[{i}]") for i, values in enumerate(entries))
        self.entries = [entry.row() for entry in parsed]
        return None

    def without_entries(self) -> "ShardSet":
        """A copy that lacks all that grows with the number of shards: for workers, which get the
        :class:`Shard` of each shard that they read."""
        alone = copy(self)
        for name in ("entries", "shards"):
            alone.__dict__.pop(name, None)
        alone.manifest = {
            "format_version": self.manifest.get("format_version", 1),
            "patcher": self.manifest["patcher"],
            "columns": self.manifest["columns"],
            "statistics": self.manifest["statistics"],
            "summary": self.manifest.get("summary"),
        }
        return alone

    @cached_property
    def entries(self) -> list[Shard]:
        """Every shard in order, also those without documents. A set of 100,000 takes 60 MB.

        Raises:
            DamagedShardError: ``entries.arrow`` is missing or damaged; names it.
        """
        assert self._tables is not None
        return list(self._tables.shards())

    @cached_property
    def shards(self) -> ShardArrays:
        """The shards that hold documents, as arrays; their places in these are their numbers.

        Raises:
            DamagedShardError: ``entries.arrow`` is missing or damaged; names it.
        """
        return ShardArrays.of(self.entries) if self._tables is None else self._tables.arrays()

    @property
    def is_checked(self) -> bool:
        """True if record batches have hashes; False for sets of format version 1."""
        return self._tables is not None

    @property
    def schema(self) -> pa.Schema:
        """The schema of every shard."""
        return shard_schema(self.metadata_columns, entropies=self.has_entropies)

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

    def path(self, number: int) -> str:
        """The URL of the Arrow file of shard ``number`` of :attr:`shards`."""
        return self.output.locate(shard_path(self.shards.name[number]))

    def batch_index(self, shard: int | Shard) -> BatchIndex:
        """Places, sizes, hashes and counts of a shard's record batches. Those that were read last
        are kept; of format version 1, the file's footer tells them.

        Args:
            shard: its number in :attr:`shards`, or an element of :attr:`entries`.

        Raises:
            DamagedShardError: ``batches.arrow``, or in version 1 the shard, is damaged; names it.
        """
        columns = ("first_batch", "batches", "shard_bytes", "tokens")
        if isinstance(shard, Shard):
            first, number, size, tokens = (getattr(shard, name) or 0 for name in columns)
        else:
            arrays = (getattr(self.shards, name) for name in columns)
            first, number, size, tokens = (int(array[shard]) for array in arrays)
        if self._tables is None:
            return _found(self.output, self._name(shard), size, tokens)
        return self._tables.batch_index(first, number)

    def _name(self, shard: int | Shard) -> str:
        return shard.path if isinstance(shard, Shard) else shard_path(self.shards.name[shard])

    def read_batch(
        self, shard: int | Shard, number: int, columns: Sequence[str] | None = None
    ) -> pa.RecordBatch:
        """One record batch of a shard. Reads its bytes and nothing else, and compares them with
        their hash.

        Args:
            shard: its number in :attr:`shards`, or an element of :attr:`entries`.
            columns: those that are decoded; None: all.

        Raises:
            DamagedShardError: it is not what was written, or cannot be read; names file and batch.
        """
        (batch,) = self.shard_batches(shard, columns, start=number, stop=number + 1)
        return batch

    def shard_batches(
        self,
        shard: int | Shard,
        columns: Sequence[str] | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows of one shard, which has documents: see :meth:`read_batch`. Neighbouring record
        batches are read together.

        Args:
            start: the first record batch.
            stop: the record batch before which to end; None: the shard's end.
        """
        if not self.is_checked:
            _warn_unchecked(self.output.url)
        return self._read(shard, columns, start, stop)

    def _read(
        self,
        shard: int | Shard,
        columns: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        index, name = self.batch_index(shard), self._name(shard)
        if stop is None:
            self._check_size(shard)
        return read_batches(self.output, name, index, self.schema, columns, start=start, stop=stop)

    def _check_size(self, shard: int | Shard) -> None:
        """
        Raises:
            DamagedShardError: the shard's file is missing, or has another size than was written.
        """
        name = self._name(shard)
        where = self.output.locate(name)
        written = (
            shard.shard_bytes if isinstance(shard, Shard) else int(self.shards.shard_bytes[shard])
        )
        with translated(where, DamagedShardError, advice=WAY_ON):
            size = self.output.size(name)
        if written and size != written:
            raise DamagedShardError(
                f"{where}: is damaged: it has {size:,} bytes, {written:,} were written; {WAY_ON}"
            )

    def checked_batches(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        """The rows of one shard as they were written, also of format version 1: there, the hash of
        the whole file is compared first.

        Raises:
            DamagedShardError: it is missing, another file, or cannot be read; names it.
        """
        if not self.is_checked:
            self.check_file(shard)
        return self._read(shard)

    def check_file(self, shard: Shard) -> None:
        """Compare a shard's file with the hash of what was written.

        Raises:
            DamagedShardError: it is missing, another file, or cannot be read; names it.
        """
        where = self.output.locate(shard.path)
        with translated(where, DamagedShardError), self.output.open(shard.path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256:
            raise DamagedShardError(
                f"{where}: sha256 is {digest}, {shard.sha256} was written: it is damaged; {WAY_ON}"
            )

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, as Arrow record batches."""
        for number in range(len(self.shards.name)):
            yield from self.shard_batches(number, columns)

    def __iter__(self) -> Iterator[PatchedDocument]:
        for batch in self.batches():
            yield from read_documents(batch)

    @cached_property
    def bpe(self) -> BPE | None:
        """The tokenizer whose tokens are the patches; None for other rules than ``bpe``.

        Raises:
            DamagedShardError: it is missing, or another one than was written; names it.
        """
        wanted = self.patcher.tokenizer
        if wanted is None:
            return None
        where = self.output.locate(TOKENIZER_FILE)
        with translated(where, DamagedShardError, advice=WAY_ON):
            bpe = BPE(where, self.output.read(TOKENIZER_FILE))
        if bpe.sha256 != wanted:
            raise DamagedShardError(
                f"{where}: sha256 is {bpe.sha256}, {wanted} was written: it is damaged; {WAY_ON}"
            )
        return bpe

    def rejects(self) -> Iterator[dict[str, str]]:
        """Records that could not be used: ``file``, ``position``, ``reason``.

        Raises:
            DamagedShardError: a file that holds them is missing or cannot be read; names it.
        """
        for entry in self.entries:
            yield from self.shard_rejects(entry)

    def shard_rejects(self, entry: Shard) -> list[dict[str, str]]:
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


@lru_cache(maxsize=CACHED_FOOTERS)
def _found(output: OutputDirectory, name: str, size: int, tokens: int) -> BatchIndex:
    return find_batches(output, name, size, tokens)


@cache
def _warn_unchecked(url: str) -> None:
    """Say once per set that nothing tells whether its record batches are intact."""
    logging.getLogger(__name__).warning(
        f"{url}: is of format version 1, whose record batches have no hashes: damage may go "
        "unnoticed; running its patch_corpus.py command again makes it version 2"
    )


def open_shards(url: str) -> ShardSet:
    """Open a finished shard set: a local directory or a URL.

    Raises:
        PipelineError: there is no manifest, or one that is damaged or of another format.
    """
    return ShardSet(url)
