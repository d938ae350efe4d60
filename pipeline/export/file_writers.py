"""How rows become a file: Parquet or Arrow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards.format import ipc_options

WriteRows = Callable[[pa.RecordBatch], None]
ROW_GROUP_BYTES = 32 << 20
"""Arrow data in a row group, about: a reader holds so much at a time."""


@contextmanager
def arrow_writer(path: Path, schema: pa.Schema) -> Iterator[WriteRows]:
    """Write an Arrow file, compressed as shards are."""
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, schema, options=ipc_options()) as writer,
    ):
        yield writer.write_batch


@contextmanager
def parquet_writer(path: Path) -> Iterator[WriteRows]:
    """Write a Parquet file with row groups of about ROW_GROUP_BYTES."""
    with pa.OSFile(str(path), "wb") as file:
        groups = _RowGroups(file)
        try:
            yield groups.add
            groups.write()
        finally:
            groups.close()


class _RowGroups:
    """Collects batches and writes them as row groups."""

    def __init__(self, file: pa.NativeFile):
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            # Dictionaries of texts and entropies would be as large as the values.
            self._writer = pq.ParquetWriter(
                self._file, batch.schema, compression="zstd", use_dictionary=False
            )
        self._waiting.append(batch)
        if sum(waiting.nbytes for waiting in self._waiting) >= ROW_GROUP_BYTES:
            self.write()

    def write(self) -> None:
        if self._writer is not None and self._waiting:
            table = pa.Table.from_batches(self._waiting)
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._waiting = []

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
