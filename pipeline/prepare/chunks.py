"""The files of chunks: their names, and writing them as Parquet or lines of JSON.

:mod:`pipeline.corpus.prepared` says how they lie in a prepared corpus.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.prepared import ID_COLUMN, TEXT_COLUMN
from pipeline.prepare.config import ChunkFormat

ZSTD_LEVEL = 3
ROW_GROUP_BYTES = 32 << 20


def chunk_names(corpus: str, chunk_format: ChunkFormat, chunks: int) -> list[str]:
    """Names of the chunks, whose numbers have as many digits as the last one needs, but at least
    two."""
    digits = max(2, len(str(chunks - 1)))
    return [f"{corpus}.chunk.{i:0{digits}}.{chunk_format}" for i in range(chunks)]


def validation_name(corpus: str, chunk_format: ChunkFormat) -> str:
    """Name of the validation set's file."""
    return f"{corpus}.val.{chunk_format}"


@contextlib.contextmanager
def chunk_writer(
    path: Path, chunk_format: ChunkFormat, metadata: Sequence[str]
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Open a new chunk; gives a function that writes rows of runs to it.

    Args:
        metadata: names of the metadata columns, which runs have too.
    """
    columns = [ID_COLUMN, TEXT_COLUMN, *metadata]
    schema = pa.schema([(name, pa.large_string()) for name in columns])
    opened = _parquet_writer if chunk_format == "parquet" else _jsonl_writer
    with opened(path, schema) as write:

        def write_rows(rows: pa.RecordBatch) -> None:
            # The text is valid UTF-8: it was read as such.
            arrays = [rows[name].cast(pa.large_string(), safe=False) for name in columns]
            write(pa.RecordBatch.from_arrays(arrays, schema=schema))

        yield write_rows


Write = Callable[[pa.RecordBatch], None]


@contextlib.contextmanager
def _parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    pending: list[pa.RecordBatch] = []
    with (
        pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=schema.names[2:],  # texts and ids hardly ever repeat
            write_statistics=schema.names[2:],  # those of texts would hold whole texts
            store_schema=False,  # plain strings, not large ones, to whoever reads it
        ) as writer
    ):

        def flush() -> None:
            if not pending:
                return
            table = pa.Table.from_batches(pending, schema)
            pending.clear()
            groups = -(-table.nbytes // ROW_GROUP_BYTES)
            writer.write_table(table, row_group_size=-(-len(table) // max(groups, 1)))

        pending_bytes = 0

        def write(batch: pa.RecordBatch) -> None:
            nonlocal pending_bytes
            if not len(batch):  # some readers cannot bear a group without rows
                return
            pending.append(batch)
            pending_bytes += batch.nbytes
            if pending_bytes >= ROW_GROUP_BYTES:
                flush()
                pending_bytes = 0

        yield write
        flush()


@contextlib.contextmanager
def _jsonl_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("wb") as file:

        def write(batch: pa.RecordBatch) -> None:
            for start in range(0, len(batch), 256):  # Python values take more room than Arrow's
                rows = batch.slice(start, 256).to_pylist()
                file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)

        yield write
