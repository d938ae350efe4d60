"""Sorted runs: documents in the order of their keys, of which any range of keys can be read.

A shuffle is a sort by random keys, and too large for memory: each worker sorts what it can hold and
writes it as a *run*; a range of keys is then read from all runs and sorted once more. Runs are cut
into *cells*, equal ranges of keys on a *grid*, the smallest part that is read at a time.

The file of a run, with N rows on a grid of C cells::

    0             Arrow IPC stream: the schema, then a record batch without rows
    offsets[0]    the record batch of cell 0
    offsets[1]    the record batch of cell 1
    ...
    offsets[C]    end-of-stream mark
    keys_offset   the keys of all rows, ascending: N little-endian uint64
    cells_offset  C + 1 pairs of little-endian uint64: offsets[i], and the XXH3-64 of cell i (of the
                  last pair 0)

Cell ``i`` lies at ``[offsets[i], offsets[i + 1])``; a cell without documents has no bytes there.
Each batch is a whole IPC message without dictionaries, so that it can be read alone, given the
schema: ``pyarrow.ipc.read_record_batch(data[offsets[i] : offsets[i + 1]], schema)``. Its rows are
sorted by (key, place); its buffers are compressed with LZ4. The columns are::

    key: uint64              what the shuffle sorts by
    place: uint64            rank of the document in the corpus, which decides between equal keys
    text: large_binary       UTF-8
    sample_id: large_string
    ...: large_string        the metadata columns, null where a document has none

``rows``, ``keys_offset`` and the hashes of keys and pairs are not in the file but in the entry of
the unit or merge that wrote it (``exchange/units/NNNNNN.json``), as :class:`SortedRun` has them;
what is read is compared with its hash first. The offsets are in the file, because the driver holds
all entries: at 10 TB, 150,000 merged runs of 4,096 cells each have 600 million offsets, of which
whoever writes a chunk needs ten thousand. The keys are there twice so that the lowest ones of all
runs can be found without reading texts.

For example, keys of 4 bits on a grid of four cells, and documents with the keys 5, 1 and 12: the
offsets are ``[a, b, c, c, d]``. ``[a, b)`` holds key 1, ``[b, c)`` key 5, nothing lies in the cell
of the keys 8 to 11, ``[c, d)`` holds key 12; 1, 5, 12 follow in eight bytes each, and the file ends
with the pairs of a, b, c, c, d.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.errors import PipelineError
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.output import OutputDirectory

KEY_BITS = 64
COMPRESSION = "lz4"
"""A run is written once and read once: this codec costs little both ways."""
KEYS_PER_HASH = 8192
"""Keys that have a hash together, and are read together."""
PAIRS_PER_HASH = 512
"""The same for pairs of offset and hash."""
PAIR = np.dtype([("offset", "<u8"), ("hash", "<u8")])
_KEYS_BYTES, _PAIRS_BYTES = 8 * KEYS_PER_HASH, PAIR.itemsize * PAIRS_PER_HASH
WINDOW_BYTES = 16 << 20
"""Compressed bytes of runs that are fetched at a time."""


def run_schema(metadata: Sequence[str]) -> pa.Schema:
    """The schema of a run with these metadata columns."""
    columns = [("key", pa.uint64()), ("place", pa.uint64()), ("text", pa.large_binary())]
    strings = [(name, pa.large_string()) for name in ("sample_id", *metadata)]
    return pa.schema([*columns, *strings])


@dataclass(frozen=True)
class Grid:
    """Cells of equal width: cell i holds the keys ``low + [i, i + 1) * 2**width_bits``."""

    low: int
    cells: int
    width_bits: int

    @classmethod
    def over(cls, low: int, bits: int, cells: int) -> "Grid":
        """Cut the ``2**bits`` keys from ``low`` on into ``cells`` cells, a power of two."""
        return cls(low, cells, bits - cells.bit_length() + 1)

    def start(self, cell: int) -> int:
        """The first key of a cell."""
        return self.low + (cell << self.width_bits)

    def cell_of(self, key: int) -> int:
        """The cell that holds a key; outside 0 to ``cells - 1`` if it is not on the grid."""
        return (key - self.low) >> self.width_bits

    def cells_of(self, keys: range) -> range:
        """The cells that hold the keys of a range, as far as they are on the grid."""
        first, last = self.cell_of(keys.start), self.cell_of(keys.stop - 1)
        return range(max(first, 0), min(last, self.cells - 1) + 1)


@dataclass(frozen=True)
class SortedRun:
    """A committed run, as the module's description has it."""

    name: str
    """Path of its file, below the output directory."""
    rows: int
    cells: int
    keys_offset: int
    key_hashes: str
    """XXH3-64 of each KEYS_PER_HASH keys, 16 hexadecimal digits each."""
    pair_hashes: str
    """The same of each PAIRS_PER_HASH pairs."""

    @property
    def cells_offset(self) -> int:
        """The place in the file where the pairs of cells begin."""
        return self.keys_offset + 8 * self.rows


class SortedRows(NamedTuple):
    """Documents sorted by key."""

    keys_D: np.ndarray
    """uint64, ascending."""
    table: pa.Table
    """The rows in the order of the input."""
    order_D: np.ndarray
    """The document's row in the table."""

    def part(self, start: int, stop: int) -> pa.RecordBatch:
        """Documents ``start`` to ``stop`` as a batch."""
        taken = self.table.take(pa.array(self.order_D[start:stop]))
        return pa.RecordBatch.from_arrays(
            [column.combine_chunks() for column in taken.columns], schema=taken.schema
        )


def sort_rows(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> SortedRows:
    """The rows of all batches, sorted by (key, place)."""
    table = pa.Table.from_batches(batches, schema).combine_chunks()
    keys_D, places_D = table["key"].to_numpy(), table["place"].to_numpy()
    order_D = np.lexsort((places_D, keys_D))
    return SortedRows(keys_D[order_D], table, order_D)


def without_duplicates(rows: SortedRows) -> tuple[SortedRows, DocumentStatistics]:
    """The rows without those whose text an earlier row has, and statistics of those left out.

    Keys have to be made from texts, so that equal texts have equal keys and are neighbours.
    Different texts may share a key, too; therefore the texts within each stretch of equal keys are
    compared. With the keys and texts (7, "x"), (7, "y"), (7, "x"), (9, "z") the third row goes.
    """
    same_D = np.zeros(len(rows.keys_D), bool)  # as the one before; the first has none before it
    same_D[1:] = rows.keys_D[1:] == rows.keys_D[:-1]
    texts = rows.table["text"]
    drop: list[int] = []
    seen: set[bytes] = set()
    for i in np.flatnonzero(same_D):
        if not same_D[i - 1]:  # the one before is the first with this key
            seen = {texts[int(rows.order_D[i - 1])].as_py()}
        text = texts[int(rows.order_D[i])].as_py()
        if text in seen:
            drop.append(int(i))
        seen.add(text)
    if not drop:
        return rows, DocumentStatistics()
    duplicates = texts.take(pa.array(rows.order_D[drop])).combine_chunks()
    distinct = SortedRows(np.delete(rows.keys_D, drop), rows.table, np.delete(rows.order_D, drop))
    return distinct, DocumentStatistics.of(duplicates)


def write_run(output: OutputDirectory, name: str, grid: Grid, rows: SortedRows) -> SortedRun:
    """Commit rows, whose keys lie on the grid, as a run.

    Raises:
        PipelineError: the file cannot be written.
    """
    starts = np.array([grid.start(cell) for cell in range(1, grid.cells)], np.uint64)
    edges = [0, *np.searchsorted(rows.keys_D, starts).tolist(), len(rows.keys_D)]
    options = pa.ipc.IpcWriteOptions(compression=COMPRESSION, use_threads=False)
    with output.committing(name) as path, pa.OSFile(str(path), "wb") as file:
        with pa.ipc.new_stream(file, rows.table.schema, options=options) as writer:
            writer.write_batch(rows.part(0, 0))  # the schema is written with the first batch
            offsets = [file.tell()]
            for start, stop in pairwise(edges):
                if stop > start:
                    writer.write_batch(rows.part(start, stop))
                offsets.append(file.tell())
        keys_offset = file.tell()
        keys = rows.keys_D.astype("<u8").tobytes()
        file.write(keys)
        file.close()
        pairs = np.zeros(grid.cells + 1, PAIR)
        pairs["offset"] = offsets
        with path.open("rb+") as written:
            for cell, (start, stop) in enumerate(pairwise(offsets)):
                written.seek(start)
                pairs["hash"][cell] = xxhash.xxh3_64_intdigest(written.read(stop - start))
            written.seek(0, os.SEEK_END)
            written.write(pairs.tobytes())
    key_hashes, pair_hashes = _hashes(keys, _KEYS_BYTES), _hashes(pairs.tobytes(), _PAIRS_BYTES)
    return SortedRun(name, len(rows.keys_D), grid.cells, keys_offset, key_hashes, pair_hashes)


def _hashes(data: bytes, step: int) -> str:
    """The hashes of every ``step`` bytes."""
    parts = (data[start : start + step] for start in range(0, len(data), step))
    return "".join(map(xxhash.xxh3_64_hexdigest, parts))


def _damaged(output: OutputDirectory, run: SortedRun) -> PipelineError:
    """The error for a run of which a part has another hash than what was written."""
    return PipelineError(
        f"{output.locate(run.name)}: is damaged: it is not what was written; --overwrite starts "
        "anew"
    )


def _read_pairs(output: OutputDirectory, runs: Sequence[SortedRun], cells: range) -> np.ndarray:
    """The pairs of some neighbouring cells, and of the one behind them, of each run.

    Returns:
        PAIR, runs x (cells + 1).

    Raises:
        PipelineError: a run cannot be read, or is damaged.
    """
    first, end = cells.start // PAIRS_PER_HASH, cells.stop // PAIRS_PER_HASH + 1
    starts = [run.cells_offset + first * _PAIRS_BYTES for run in runs]
    stops = [
        run.cells_offset + min(end * _PAIRS_BYTES, (run.cells + 1) * PAIR.itemsize) for run in runs
    ]
    ranges = output.read_ranges([run.name for run in runs], starts, stops)
    for run, data in zip(runs, ranges, strict=True):
        if _hashes(data, _PAIRS_BYTES) != run.pair_hashes[16 * first : 16 * end]:
            raise _damaged(output, run)
    skip = cells.start - first * PAIRS_PER_HASH
    pairs = [np.frombuffer(data, PAIR)[skip : skip + len(cells) + 1] for data in ranges]
    return np.stack(pairs)


def read_cells(
    output: OutputDirectory, runs: Sequence[SortedRun], cells: range, schema: pa.Schema
) -> Iterator[list[pa.RecordBatch]]:
    """For each of some neighbouring cells, its record batches in those runs that have one.

    Ranges of bytes are fetched from all runs at once, about WINDOW_BYTES of them or one cell.

    Raises:
        PipelineError: a run cannot be read.
    """
    pairs_RC = _read_pairs(output, runs, cells)
    offsets_RC = pairs_RC["offset"].astype(np.int64)
    names = [run.name for run in runs]
    first, end = 0, len(cells)
    while first < end:
        # As many cells as fit into the window, but at least one.
        bytes_to = (offsets_RC[:, first + 1 :] - offsets_RC[:, first, None]).sum(0)
        stop = first + max(1, int(np.searchsorted(bytes_to, WINDOW_BYTES, side="right")))
        starts_R, stops_R = offsets_RC[:, first], offsets_RC[:, stop]
        pieces = output.read_ranges(names, starts_R.tolist(), stops_R.tolist())
        for cell in range(first, stop):
            begins, ends = (offsets_RC[:, cell + i] - starts_R for i in (0, 1))
            found = zip(runs, pieces, begins, ends, pairs_RC["hash"][:, cell], strict=True)
            for run, piece, a, b, written in found:
                if xxhash.xxh3_64_intdigest(memoryview(piece)[a:b]) != written:
                    raise _damaged(output, run)
            yield [
                pa.ipc.read_record_batch(pa.py_buffer(piece)[a:b], schema)
                for piece, a, b in zip(pieces, begins, ends, strict=True)
                if b > a
            ]
        first = stop


def lowest_keys(output: OutputDirectory, runs: Sequence[SortedRun], count: int) -> np.ndarray:
    """The ``count`` lowest distinct keys in runs (uint64, ascending); all, if there are fewer.

    A run can contribute no key beyond its own ``count`` lowest ones; those are the first ``count``
    of its keys unless some are equal: then twice as many are read, until they suffice.
    """
    lowest = np.zeros(0, np.uint64)
    for i in range(0, len(runs), 16):
        some = list(runs[i : i + 16])
        rows = count
        while some and count:
            rows = -(-rows // KEYS_PER_HASH) * KEYS_PER_HASH
            starts = [run.keys_offset for run in some]
            stops = [run.keys_offset + 8 * min(run.rows, rows) for run in some]
            ranges = output.read_ranges([run.name for run in some], starts, stops)
            for run, data in zip(some, ranges, strict=True):
                if _hashes(data, _KEYS_BYTES) != run.key_hashes[: 16 * (rows // KEYS_PER_HASH)]:
                    raise _damaged(output, run)
            keys = [np.unique(np.frombuffer(data, "<u8")) for data in ranges]
            lowest = np.unique(np.concatenate([lowest, *keys]))[:count]
            few = [len(keys_K) < count for keys_K in keys]
            some = [run for run, more in zip(some, few, strict=True) if more and rows < run.rows]
            rows *= 2
    return lowest
