"""One exported file: its commit record, and the hash of its rows."""

from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.statistics.counts import PatchStatistics, PatchStatisticsRecord, without_histograms

ENTRIES = "entries"
"""Directory of the commit records, one for each exported file."""


@dataclass
class ExportedFile:
    """An exported file: its commit record, and its line of the manifest."""

    name: str
    """Name of the shard."""
    path: str
    """Path below the output."""
    rows: int = 0
    bytes: int = 0
    arrow_bytes: int = 0
    """Size of the rows in memory, which ``datasets`` calls the size of a data set."""
    sha256: str = ""
    content: str = ""
    """Hash of the rows, whatever file they are in; see :class:`RowsHash`."""
    statistics: PatchStatisticsRecord = field(default_factory=lambda: PatchStatistics().to_json())
    """:class:`PatchStatistics` of the rows as exported."""

    def without_histograms(self) -> "ExportedFile":
        """A copy that lacks the histograms, which are long."""
        return replace(self, statistics=without_histograms(self.statistics))

    @property
    def entry_path(self) -> str:
        """The path of its commit record, below the output."""
        return f"{ENTRIES}/{self.name}.json"


class RowsHash:
    """A hash of rows that depends neither on how they are cut into batches nor on the format.

    Each column has two hashes: one of the lengths of its values (-1 for null), one of the values
    laid end to end. Two columns differ in one of them whenever they differ: ``["ab", "c"]`` and
    ``["a", "bc"]`` in the lengths, ``["ab"]`` and ``["ac"]`` in the values.
    """

    def __init__(self) -> None:
        self._columns: dict[str, tuple[xxhash.xxh3_128, xxhash.xxh3_128]] = {}

    def update(self, batch: pa.RecordBatch) -> None:
        """Add rows; columns are strings or lists of numbers."""
        for name in batch.schema.names:
            column = batch[name]
            if pa.types.is_string(column.type):
                column = column.cast(pa.binary())
            if pa.types.is_binary(column.type):
                lengths = pc.binary_length(column)
                data = b"".join(value for value in column.to_pylist() if value is not None)
            else:
                lengths = pc.list_value_length(column)
                data = column.flatten().to_numpy(zero_copy_only=False).tobytes()
            hash_of_lengths, hash_of_values = self._columns.setdefault(
                name, (xxhash.xxh3_128(), xxhash.xxh3_128())
            )
            filled = lengths.cast(pa.int64()).fill_null(-1)
            hash_of_lengths.update(filled.to_numpy(zero_copy_only=False).tobytes())
            hash_of_values.update(data)

    def hexdigest(self) -> str:
        whole = xxhash.xxh3_128()
        for name, hashes in sorted(self._columns.items()):
            whole.update(f"{name} {hashes[0].hexdigest()} {hashes[1].hexdigest()}\n".encode())
        return whole.hexdigest()
