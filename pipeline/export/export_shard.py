"""One shard → one file of another layout. No Ray in here."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipeline.export.config import ExportShardsConfig
from pipeline.patches import recut
from pipeline.shards.entries import ShardEntry
from pipeline.shards.format import ipc_options, read_patches, with_patches
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import PatchStatistics, PatchStatisticsRecord
from pipeline.storage.output import OutputDirectory, to_json

ENTRIES = "entries"
CHUNK = re.compile(r"(?P<corpus>.+)\.chunk\.(?P<number>\d+)\.\w+")
"""Names of chunks as prepare_corpus.py gives them, and, ending in .jsonl, the published recipe."""
REFERENCE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("entropies", pa.list_(pa.float16()), nullable=False),
    ]
)
ROW_GROUP_BYTES = 32 << 20
"""Of Arrow data, about: what a reader holds at a time."""


class Piece(NamedTuple):
    """A shard, and the file that it becomes."""

    entry: ShardEntry
    """Without its statistics, which are long: workers get all pieces."""
    bytes: int
    """Of text."""
    path: str
    """Below the output."""


@dataclass
class ExportedFile:
    """What is known of an exported file: the commit record, and a line of the manifest."""

    name: str
    """Of the shard."""
    path: str
    rows: int = 0
    bytes: int = 0
    arrow_bytes: int = 0
    """Of the rows in memory, which is what ``datasets`` calls their size."""
    sha256: str = ""
    content: str = ""
    """Hash of the rows, whatever file they are in; see :class:`RowsHash`."""
    statistics: PatchStatisticsRecord = field(default_factory=lambda: PatchStatistics().to_json())
    """:class:`PatchStatistics` of the rows as exported."""


def plan_export(shards: ShardSet, config: ExportShardsConfig) -> list[Piece]:
    """Every shard with documents, and where it goes."""
    entries = [entry for entry in shards.entries if entry.sha256 is not None]
    if config.format == "parquet":
        paths = [f"data/{entry.name}.parquet" for entry in entries]
    elif config.format == "reference":
        paths = list(_reference_paths(entries, corpus_name(shards, config)))
    else:
        last = len(entries)
        paths = [f"data/train-{i:05d}-of-{last:05d}.parquet" for i in range(last)]
    return [
        Piece(replace(entry, statistics={}), entry.statistics["bytes"], path)
        for entry, path in zip(entries, paths, strict=True)
    ]


def complete_mark(path: str) -> str:
    """The file that tells the published loader that another one is whole."""
    return f"{path}.complete"


def corpus_name(shards: ShardSet, config: ExportShardsConfig) -> str:
    """What the published layout calls the corpus."""
    if config.corpus:
        return config.corpus
    names = [PurePosixPath(entry.source).name for entry in shards.entries]
    chunks = [CHUNK.fullmatch(name) for name in names]
    return chunks[0]["corpus"] if chunks and chunks[0] else PurePosixPath(shards.output.url).name


def _reference_paths(entries: list[ShardEntry], corpus: str) -> Iterator[str]:
    """Shards are numbered within their chunk; chunks that have numbers keep them."""
    sources = list(dict.fromkeys(entry.source for entry in entries))
    chunks = [CHUNK.fullmatch(PurePosixPath(source).name) for source in sources]
    numbers = [chunk["number"] if chunk else "" for chunk in chunks]
    if not all(numbers) or len(set(map(int, numbers))) < len(numbers):
        numbers = [f"{i:02d}" for i in range(len(sources))]
    number_of = dict(zip(sources, numbers, strict=True))
    written: Counter[str] = Counter()
    for entry in entries:
        number = number_of[entry.source]
        yield f"{corpus}.chunk.{number}.jsonl.shard_{written[number]}.arrow"
        written[number] += 1


def export_shard(
    shards: ShardSet, piece: Piece, config: ExportShardsConfig, output: OutputDirectory
) -> ExportedFile:
    """Write a shard's file and commit it.

    Raises:
        DamagedShardError: the shard is missing, or not the file that its manifest says.
        PipelineError: the output cannot be written.
    """
    exported = ExportedFile(piece.entry.name, piece.path)
    statistics, rows_hash = PatchStatistics(), RowsHash()
    with output.committing(piece.path) as temporary:
        with _Writer(temporary, piece.path) as writer:
            for batch, counted in _converted(shards, piece.entry, config):
                writer.write(batch)
                rows_hash.update(batch)
                statistics += counted
                exported.rows += batch.num_rows
                exported.arrow_bytes += batch.nbytes
        exported.bytes = temporary.stat().st_size
        with temporary.open("rb") as file:
            exported.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    exported.content, exported.statistics = rows_hash.hexdigest(), statistics.to_json()
    if config.format == "reference":
        output.write(complete_mark(piece.path), b"")
    output.write(f"{ENTRIES}/{exported.name}.json", to_json(asdict(exported)))
    return exported


def _converted(
    shards: ShardSet, entry: ShardEntry, config: ExportShardsConfig
) -> Iterator[tuple[pa.RecordBatch, PatchStatistics]]:
    """The rows of a shard as they are exported, and counts of them."""
    patcher = shards.patcher
    if config.threshold is not None:
        patcher = replace(patcher, threshold=config.threshold)
    for batch in shards.checked_batches(entry):
        scored = read_patches(batch)
        if config.threshold is not None:
            # Rules that have a threshold do not read text.
            scored = recut(patcher, scored.entropies_T, scored.lengths_D)
            batch = with_patches(batch, scored)
        counted = PatchStatistics.of(scored.lengths_D, scored.patch_lengths_P, scored.entropies_T)
        if config.format == "reference":
            columns = [batch[name] for name in REFERENCE_SCHEMA.names]
            batch = pa.record_batch(columns, schema=REFERENCE_SCHEMA)
        elif config.drop_entropies and "entropies" in batch.schema.names:
            batch = batch.drop_columns(["entropies"])
        yield batch, counted


class _Writer:
    """Writes batches to a file, Parquet or Arrow by its name."""

    def __init__(self, path: Path, name: str):
        self.path, self.parquet = path, name.endswith(".parquet")
        self._writer: Any = None
        self._waiting: list[pa.RecordBatch] = []
        self._stack = ExitStack()

    def __enter__(self) -> "_Writer":
        self._file = self._stack.enter_context(pa.OSFile(str(self.path), "wb"))
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            self._writer = self._open(batch.schema)
        if not self.parquet:
            self._writer.write_batch(batch)
            return
        self._waiting.append(batch)
        if sum(waiting.nbytes for waiting in self._waiting) >= ROW_GROUP_BYTES:
            self._flush()

    def _open(self, schema: pa.Schema) -> Any:
        if not self.parquet:
            return pa.ipc.new_file(self._file, schema, options=ipc_options())
        # Of bytes and entropies a dictionary would be as large as the values.
        return pq.ParquetWriter(self._file, schema, compression="zstd", use_dictionary=False)

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting)
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._waiting = []

    def __exit__(self, *error: object) -> None:
        with self._stack:
            if self._writer is not None and error[0] is None:
                self._flush()
            if self._writer is not None:
                self._writer.close()


class RowsHash:
    """Hash of rows that does not depend on how they are cut into batches, nor on the format."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[xxhash.xxh3_128, xxhash.xxh3_128]] = {}

    def update(self, batch: pa.RecordBatch) -> None:
        """Add rows: of each column its lengths (-1 for null), and its values end to end."""
        for name in batch.schema.names:
            column = batch[name]
            if pa.types.is_string(column.type):
                column = column.cast(pa.binary())
            lengths = pc.binary_length(column) if pa.types.is_binary(column.type) else None
            if lengths is None:
                lengths = pc.list_value_length(column)
                data = column.flatten().to_numpy(zero_copy_only=False).tobytes()
            else:
                data = b"".join(value for value in column.to_pylist() if value is not None)
            of_lengths, of_values = self._columns.setdefault(
                name, (xxhash.xxh3_128(), xxhash.xxh3_128())
            )
            filled = lengths.cast(pa.int64()).fill_null(-1)
            of_lengths.update(filled.to_numpy(zero_copy_only=False).tobytes())
            of_values.update(data)

    def hexdigest(self) -> str:
        whole = xxhash.xxh3_128()
        for name, hashes in sorted(self._columns.items()):
            whole.update(f"{name} {hashes[0].hexdigest()} {hashes[1].hexdigest()}\n".encode())
        return whole.hexdigest()


def verify_file(file: ExportedFile, output: OutputDirectory) -> str | None:
    """What is wrong with an exported file, if anything."""
    where = output.locate(file.path)
    try:
        with output.open(file.path) as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != file.sha256:
            return f"{where}: sha256 is {digest}, {file.sha256} was written"
        rows, found = 0, RowsHash()
        for batch in read_rows(file, output):
            rows += batch.num_rows
            found.update(batch)
    except (OSError, pa.ArrowInvalid) as error:
        return f"{where}: cannot be read: {error}"
    if (rows, found.hexdigest()) != (file.rows, file.content):
        return f"{where}: its rows are not those of the shard"
    return None


def read_rows(file: ExportedFile, output: OutputDirectory) -> Iterator[pa.RecordBatch]:
    """The rows of an exported file."""
    with output.open(file.path) as opened:
        if file.path.endswith(".parquet"):
            yield from pq.ParquetFile(opened).iter_batches(batch_size=1024)
        else:
            reader = pa.ipc.open_file(opened)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)
