"""Entries of a shard set in columns: two Arrow IPC files beside the manifest, read in part.

``entries.arrow`` has a row per shard, ``batches.arrow`` a row per record batch of all shards, in
the same order. The manifest has the index of both (see :mod:`pipeline.shards.record_batches`), so
that any part of them is read with one range and compared with its hash. Opening a set reads the
first; of the second, a reader takes a part when it first needs a shard in it.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa

from pipeline.errors import DamagedShardError
from pipeline.shards.entries import Shard, ShardEntry
from pipeline.shards.record_batches import BatchesRecord, BatchIndex, WrittenFile, read_batches
from pipeline.storage.output import OutputDirectory

ENTRIES_FILE, BATCHES_FILE = "entries.arrow", "batches.arrow"
SHARDS_PER_PART = 1000
"""Rows in a record batch of ``entries.arrow``: also how many entries are read at a time."""
BATCHES_PER_PART = 8192
"""Rows in a record batch of ``batches.arrow``, at most, unless a single shard has more: a shard's
rows are all in one."""
CACHED_PARTS = 64
"""Parts that are kept, 20 MB: the lanes of a training are in as many shards at once."""

ENTRIES_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("records", pa.int64(), nullable=False),
        pa.field("rejects", pa.int64(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("shard_bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("patches", pa.int64(), nullable=False),
        pa.field("entropy", pa.int64(), nullable=False),
        pa.field("batches", pa.int64(), nullable=False),
    ]
)
SHARDS_SCHEMA = pa.schema(
    [
        *(field.with_nullable(True) for field in ENTRIES_SCHEMA),
        pa.field("first_batch", pa.int64()),
    ]
)
"""The columns of :func:`shard_rows`; sets of format version 1 do not know their batches."""
BATCHES_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("hash", pa.uint64(), nullable=False),
    ]
)


class TableRecord(TypedDict):
    """A file of columns, as the manifest says it."""

    bytes: int
    sha256: str
    parts: BatchesRecord
    """The index of its record batches; their ``tokens`` are 0."""


def table_record(file: WrittenFile) -> TableRecord:
    return {"bytes": file.bytes, "sha256": file.sha256, "parts": file.batches.to_json()}


def entry_rows(entries: Sequence[ShardEntry]) -> pa.RecordBatch:
    """Rows of ``entries.arrow``."""
    return _rows([entry.row() for entry in entries], ENTRIES_SCHEMA)


def shard_rows(shards: Sequence[Shard]) -> pa.RecordBatch:
    """The shards of a set in columns, for workers: Shards would take 0.6 kB each in every worker,
    and the workers of a node share one copy of the columns."""
    return _rows(shards, SHARDS_SCHEMA)


def _rows(shards: Sequence[Shard], schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        pa.array([getattr(shard, field.name) for shard in shards], field.type) for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


def as_shards(rows: pa.RecordBatch) -> Iterator[Shard]:
    """The shards in rows of ``entries.arrow``, which lacks the number of their first batch, or of
    :func:`shard_rows`."""
    columns = (column.to_pylist() for column in rows.columns)
    names = rows.schema.names
    for values in zip(*columns, strict=True):
        yield Shard(**{"first_batch": 0} | dict(zip(names, values, strict=True)))  # type: ignore


def batch_rows(entries: Sequence[ShardEntry]) -> list[pa.RecordBatch]:
    """Rows of ``batches.arrow``, in parts that no shard crosses."""
    parts: list[pa.RecordBatch] = []
    waiting: list[BatchIndex] = []
    indexes = [index for entry in entries if (index := entry.batch_index) is not None]
    for index in indexes:
        if waiting and sum(len(i.rows) for i in waiting) + len(index.rows) > BATCHES_PER_PART:
            parts.append(_joined(waiting))
            waiting = []
        waiting.append(index)
    return [*parts, _joined(waiting)] if waiting else parts


def _joined(indexes: Sequence[BatchIndex]) -> pa.RecordBatch:
    columns = [pa.array(np.concatenate(arrays)) for arrays in zip(*indexes, strict=True)]
    return pa.record_batch(columns, schema=BATCHES_SCHEMA)


class ShardArrays(NamedTuple):
    """The shards of a set that hold documents, in order: one value per shard in each array."""

    name: np.ndarray
    """str objects."""
    sha256: np.ndarray
    """str objects: the hash of the Arrow file."""
    shard_bytes: np.ndarray
    """int64, as all that follow: the size of the Arrow file."""
    documents: np.ndarray
    bytes: np.ndarray
    """UTF-8 bytes of text."""
    tokens: np.ndarray
    patches: np.ndarray
    batches: np.ndarray
    """Number of record batches; -1 in format version 1, where the file alone tells."""
    first_batch: np.ndarray
    """Number of the first record batch among those of all shards."""

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> "ShardArrays":
        filled = [shard for shard in shards if shard.sha256 is not None]
        batches = [-1 if shard.batches is None else shard.batches for shard in filled]
        return cls(
            np.array([shard.name for shard in filled], object),
            np.array([shard.sha256 for shard in filled], object),
            np.array([shard.shard_bytes for shard in filled], np.int64),
            np.array([shard.documents for shard in filled], np.int64),
            np.array([shard.bytes for shard in filled], np.int64),
            np.array([shard.tokens for shard in filled], np.int64),
            np.array([shard.patches for shard in filled], np.int64),
            np.array(batches, np.int64),
            np.array([shard.first_batch for shard in filled], np.int64),
        )


class EntryTables:
    """The two files of a set, read in part."""

    def __init__(self, output: OutputDirectory, entries: TableRecord, batches: TableRecord):
        """
        Raises:
            TypeError, ValueError: the manifest's index of one is damaged.
        """
        self._output = output
        self._entries = BatchIndex.from_json(entries["parts"])
        self._batches = BatchIndex.from_json(batches["parts"])
        self._ends = self._batches.rows.cumsum()
        self._cached: OrderedDict[int, BatchIndex] = OrderedDict()

    def shards(self) -> Iterator[Shard]:
        """Every shard.

        Raises:
            DamagedShardError: the file is damaged; names it.
        """
        first = 0
        for batch in read_batches(self._output, ENTRIES_FILE, self._entries, ENTRIES_SCHEMA):
            for shard in as_shards(batch):
                shard.first_batch = first
                first += shard.batches or 0
                yield shard

    def arrays(self) -> ShardArrays:
        """The shards that hold documents; the columns that this takes are all that is decoded.

        Raises:
            DamagedShardError: the file is damaged; names it.
        """
        wanted = ShardArrays._fields[:-1]
        table = pa.Table.from_batches(
            read_batches(self._output, ENTRIES_FILE, self._entries, ENTRIES_SCHEMA, wanted),
            pa.schema([ENTRIES_SCHEMA.field(name) for name in wanted]),
        )
        batches = table["batches"].to_numpy()
        table = table.append_column("first_batch", pa.array(batches.cumsum() - batches))
        table = table.filter(table["sha256"].is_valid())
        return ShardArrays(*(column.to_numpy() for column in table.columns))

    def batch_index(self, first: int, count: int) -> BatchIndex:
        """The record batches of a shard.

        Args:
            first: number of its first one among those of all shards.

        Raises:
            DamagedShardError: the file is damaged; names it.
        """
        part = int(np.searchsorted(self._ends, first, side="right"))
        if part == len(self._ends):
            where = self._output.locate(BATCHES_FILE)
            raise DamagedShardError(f"{where}: has too few record batches for the set's shards")
        index = self._cached.get(part)  # several threads may be here
        if index is None:
            index = self._cached[part] = self._read_part(part)
            if len(self._cached) > CACHED_PARTS:
                self._cached.popitem(last=False)
        start = first - int(self._ends[part] - self._batches.rows[part])
        offset, length, rows, tokens, hashes = index
        assert hashes is not None
        arrays = (offset, length, rows, tokens, hashes)
        return BatchIndex(*(array[start : start + count] for array in arrays))

    def _read_part(self, part: int) -> BatchIndex:
        """A part of ``batches.arrow``: it lists record batches of the set's shards."""
        table = (self._output, BATCHES_FILE, self._batches, BATCHES_SCHEMA)
        (batch,) = read_batches(*table, start=part, stop=part + 1)
        return BatchIndex(*(column.to_numpy() for column in batch.columns))
