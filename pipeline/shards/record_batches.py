"""Record batches of an Arrow IPC file by themselves: where each lies, and whether it is intact.

An Arrow IPC file is a sequence of messages (the schema, then one per record batch) and a footer
that lists their places. Whoever knows the schema and the place of a record batch needs neither the
footer nor the rest of the file: one range of bytes gives the batch. A :class:`BatchIndex` holds
these places with a hash of each range, so that damage is noticed before a value is used.

The same messages after each other, behind one of the schema, are an Arrow *stream*. Hence
:func:`read_batches` puts the schema before a range that it reads, and decodes that as a stream, of
which it can leave out columns: those are then neither decompressed nor copied.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypedDict

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.errors import DamagedShardError, translated
from pipeline.shards.format import ipc_options
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import READ_AHEAD

MAGIC = b"ARROW1"
WAY_ON = "restore it, or remove it and run its patch_corpus.py command again"
# Numbers of fields in Arrow's flatbuffers.
_FOOTER_BATCHES, _MESSAGE_HEADER, _BATCH_LENGTH = 3, 2, 0
_BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("_", "<i4"), ("body", "<i8")])


class BatchesRecord(TypedDict):
    """:class:`BatchIndex` as JSON."""

    offset: list[int]
    length: list[int]
    rows: list[int]
    tokens: list[int]
    hash: list[str]
    """16 hexadecimal digits each."""


class BatchIndex(NamedTuple):
    """The record batches of a file, in their order: one value per batch in each array."""

    offset: np.ndarray
    """int64: the byte of the file at which the batch's message begins."""
    length: np.ndarray
    """int64: bytes of the message."""
    rows: np.ndarray
    """int64."""
    tokens: np.ndarray
    """int64: tokens of the rows' documents. Format version 1 does not know them: they are then
    the shard's, spread in proportion to ``length``."""
    hash: np.ndarray | None
    """uint64: XXH3-64, with seed 0, of the message; None if the format does not know it."""

    def to_json(self) -> BatchesRecord:
        assert self.hash is not None
        return {
            "offset": self.offset.tolist(),
            "length": self.length.tolist(),
            "rows": self.rows.tolist(),
            "tokens": self.tokens.tolist(),
            "hash": [f"{value:016x}" for value in self.hash.tolist()],
        }

    @classmethod
    def from_json(cls, values: BatchesRecord) -> Self:
        """
        Raises:
            TypeError, ValueError: they are no numbers, or not equally many.
        """
        offset, length, rows, tokens = (
            np.array(part, np.int64)
            for part in (values["offset"], values["length"], values["rows"], values["tokens"])
        )
        hashes = np.array([int(digits, 16) for digits in values["hash"]], np.uint64)
        if len({part.shape for part in (offset, length, rows, tokens, hashes)}) > 1:
            raise ValueError("batches: not equally many offsets, lengths, rows, tokens, hashes")
        return cls(offset, length, rows, tokens, hashes)


class WrittenFile(NamedTuple):
    """A file that :class:`BatchWriter` has written."""

    bytes: int
    sha256: str
    batches: BatchIndex


class BatchWriter:
    """Writes a local Arrow IPC file, and gives the index of its record batches when it is closed.
    The file itself is what pyarrow alone would write."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._path = path
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema, options=ipc_options())
        self._counts: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, batch: pa.RecordBatch, tokens: int = 0) -> None:
        """
        Args:
            tokens: of the batch's documents.
        """
        self._writer.write_batch(batch)
        self._counts.append((batch.num_rows, tokens))

    def close(self) -> WrittenFile:
        self._writer.close()
        self._file.close()
        with self._path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            file.seek(-len(MAGIC) - 4, 2)
            footer = struct.unpack("<i", file.read(4))[0]
            file.seek(-len(MAGIC) - 4 - footer, 2)
            blocks = _blocks(file.read(footer))
            hashes = []
            for offset, length in zip(*_places(blocks), strict=True):
                file.seek(offset)
                hashes.append(xxhash.xxh3_64_intdigest(file.read(length)))
        rows, tokens = np.array(self._counts, np.int64).reshape(-1, 2).T
        index = BatchIndex(*_places(blocks), rows, tokens, np.array(hashes, np.uint64))
        return WrittenFile(size, sha256, index)


def find_batches(output: OutputDirectory, name: str, size: int, tokens: int) -> BatchIndex:
    """The record batches of a file of format version 1, as its footer tells them, without hashes.

    Args:
        size: bytes of the file when it was written; 0 if that is not known.
        tokens: of the file's documents: spread over the batches in proportion to their length.

    Raises:
        DamagedShardError: it is no Arrow IPC file; names it.
    """
    with translated(output.locate(name), DamagedShardError, advice=WAY_ON):
        found = output.size(name)
        if found != size and size:
            raise ValueError(f"it has {found:,} bytes, {size:,} were written")
        size = found
        (end,) = output.read_ranges([name], [max(size - len(MAGIC) - 4, 0)], [size])
        if end[4:] != MAGIC:
            raise ValueError("it does not end as an Arrow file does")
        footer = size - len(end) - struct.unpack("<i", end[:4])[0]
        (data,) = output.read_ranges([name], [footer], [size - len(end)])
        blocks = _blocks(data)
        offset, length = _places(blocks)
        if (blocks["metadata"] < 8).any() or (offset + length > footer).any():
            raise ValueError("its footer names record batches that lie outside of it")
        stops = (offset + blocks["metadata"]).tolist()
        heads = output.read_ranges([name] * len(offset), offset.tolist(), stops)
        rows = np.array([_rows(head) for head in heads], np.int64)
        ends = np.round(tokens * (length.cumsum() / max(length.sum(), 1))).astype(np.int64)
        return BatchIndex(offset, length, rows, np.diff(ends, prepend=0), None)


def _places(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and lengths of the messages that a footer lists."""
    return blocks["offset"].astype(np.int64), blocks["metadata"] + blocks["body"]


def _blocks(footer: bytes) -> np.ndarray:
    """The list of record batches in a footer, which is a flatbuffer."""
    place = _field(footer, _int(footer, 0), _FOOTER_BATCHES)
    if place is None:
        return np.zeros(0, _BLOCK)
    place += _int(footer, place)
    return np.frombuffer(footer, _BLOCK, _int(footer, place), place + 4)


def _rows(head: bytes) -> int:
    """Rows of a record batch, from the metadata of its message: two numbers, then a flatbuffer."""
    message = head[8:]
    header = _field(message, _int(message, 0), _MESSAGE_HEADER)
    if header is None:
        raise ValueError("a message is no record batch")
    length = _field(message, header + _int(message, header), _BATCH_LENGTH)
    return 0 if length is None else int(struct.unpack_from("<q", message, length)[0])


def _field(data: bytes, table: int, number: int) -> int | None:
    """The place of a field in a table of a flatbuffer; None if the field has its default value.

    A table begins with the distance back to its list of fields: two bytes of that list's size, two
    of the table's, then the distance of each field from the table, 0 for those left out.
    """
    fields = table - _int(data, table)
    if fields < 0 or number >= struct.unpack_from("<H", data, fields)[0] // 2 - 2:
        return None
    distance: int = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0]
    return table + distance if distance else None


def _int(data: bytes, place: int) -> int:
    number: int = struct.unpack_from("<i", data, place)[0]
    return number


def read_batches(
    output: OutputDirectory,
    name: str,
    index: BatchIndex,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The record batches of a file from number ``start`` to ``stop``, in their order. Each is
    compared with its hash, if the index has one, before anything in it is looked at.

    Neighbours are read together, as long as they are small.

    Args:
        columns: those that are decoded, in the order that the batches have; None: all.

    Raises:
        DamagedShardError: one is not what was written, or cannot be read; names file and batch.
    """
    where = output.locate(name)
    wanted = None if columns is None else sorted(map(schema.get_field_index, columns))
    if wanted and wanted[0] < 0:
        raise KeyError(f"{where}: not all of {columns} are among its columns {schema.names}")
    options = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
    head = schema.serialize()
    for first, last in _neighbours(index, start, len(index.rows) if stop is None else stop):
        data = _read(output, name, index, first, last, head)
        _check(where, index, first, last, data.data[head.size :])
        reader = pa.ipc.open_stream(pa.py_buffer(data), options=options)
        for number in range(first, last):
            try:
                batch = reader.read_next_batch()
                if index.hash is None:
                    batch.validate(full=True)
            except (pa.ArrowException, OSError, StopIteration) as error:
                raise _damaged(where, index, number, error) from error
            yield batch if columns is None else batch.select(list(columns))


def _neighbours(index: BatchIndex, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Ranges of batch numbers that lie together in the file, of at most READ_AHEAD bytes if they
    have more than one."""
    ends = (index.offset + index.length).tolist()
    offsets = index.offset.tolist()
    while start < stop:
        last = start + 1
        while (
            last < stop
            and offsets[last] == ends[last - 1]
            and ends[last] - offsets[start] <= READ_AHEAD
        ):
            last += 1
        yield start, last
        start = last


def _read(
    output: OutputDirectory, name: str, index: BatchIndex, first: int, last: int, head: pa.Buffer
) -> np.ndarray:
    """The bytes of a range of batches behind those of ``head``."""
    begin, end = int(index.offset[first]), int(index.offset[last - 1] + index.length[last - 1])
    data = np.empty(head.size + end - begin, np.uint8)
    data[: head.size] = np.frombuffer(head, np.uint8)
    where = output.locate(name)
    with translated(where, DamagedShardError, advice=WAY_ON):
        got = output.read_into(name, begin, data.data[head.size :])
        if got < end - begin:
            number = int(np.searchsorted(index.offset + index.length, begin + got, side="right"))
            raise _damaged(where, index, number, "the file ends before it does")
    return data


def _check(where: str, index: BatchIndex, first: int, last: int, data: memoryview) -> None:
    if index.hash is None:
        return
    begin = int(index.offset[first])
    for number in range(first, last):
        offset = int(index.offset[number]) - begin
        message = data[offset : offset + int(index.length[number])]
        if xxhash.xxh3_64_intdigest(message) != int(index.hash[number]):
            raise _damaged(where, index, number, "its hash is not that of what was written")


def _damaged(where: str, index: BatchIndex, number: int, why: object) -> DamagedShardError:
    return DamagedShardError(
        f"{where}: is damaged (record batch {number} of {len(index.rows)}: {why}); {WAY_ON}"
    )
