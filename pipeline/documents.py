"""Readers: input files → splits → documents, streaming, with bounded memory.

A *split* is the part of a file that one worker reads: row groups of a Parquet file, record batches
of an Arrow file, a byte range of a plain JSONL file, any other file as a whole. A *record* is what
a file offers as a document: it becomes a :class:`Document` or, with a reason, a :class:`Reject`.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline.errors import BadFileError
from pipeline.lines import open_decompressed, read_lines
from pipeline.storage import InputFile, open_input

Format = Literal["auto", "parquet", "jsonl", "arrow", "text"]
COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    **{f".{end}{c}": "jsonl" for end in ("jsonl", "ndjson", "json") for c in COMPRESSIONS},
    **{f".{end}{c}": "text" for end in ("txt", "text", "md", "rst") for c in COMPRESSIONS},
}
READ_BYTES = 4 << 20
"""Columnar files are read in batches of about so many bytes of text."""


@dataclass(frozen=True)
class Columns:
    """Which fields of a record are wanted."""

    text: str = "text"
    id: str | None = None
    """Documents are called ``file name#position`` without one."""
    metadata: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.metadata]))


@dataclass(frozen=True)
class Split:
    """The part of a file that one worker reads."""

    file: InputFile
    format: Format
    index: int
    start: int
    stop: int | None
    """First and last+1 row group, record batch or byte; None: to the end."""
    size: int
    """Estimate of the bytes of text."""


class Document(NamedTuple):
    position: str
    """Where the record stands in its file: the row (Parquet), record batch and row (Arrow), or the
    offset of its first byte, uncompressed (JSONL, text)."""
    sample_id: str
    text: bytes
    """Valid UTF-8."""
    metadata: tuple[str | None, ...]
    """Wanted metadata columns; values other than strings as JSON."""


class Reject(NamedTuple):
    position: str
    reason: str


class FilePlan(NamedTuple):
    splits: list[Split]
    columns: list[str] | None
    """Names that the file offers; None where that is not known before reading it all."""


def file_format(file: InputFile, wanted: Format) -> Format | None:
    """The format asked for, or the one that the name tells; None if it does not tell."""
    if wanted != "auto":
        return wanted
    return next((f for end, f in SUFFIXES.items() if file.name.endswith(end)), None)


def plan_file(file: InputFile, file_format: Format, split_bytes: int) -> FilePlan:
    """Cut a file into splits of about ``split_bytes``, by its content alone.

    A file that cannot be read gets one split; reading that then tells what is wrong.
    """
    whole = FilePlan([Split(file, file_format, 0, 0, None, file.size)], None)
    if file_format == "text":
        return whole
    try:
        with open_input(file.url) as raw:
            if file_format == "parquet":
                metadata = pq.ParquetFile(raw).metadata
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
                sizes = [group.total_byte_size for group in groups]
                columns = metadata.schema.to_arrow_schema().names
            elif file_format == "arrow":
                reader = _open_arrow(raw)
                batches = getattr(reader, "num_record_batches", None)
                columns = reader.schema.names
                if batches is None:  # a stream has to be read from its start
                    return FilePlan(whole.splits, columns)
                sizes = [file.size // batches] * batches
            else:
                columns = _first_keys(open_decompressed(raw, file.name))
                if file.name.endswith(COMPRESSIONS[1:]):
                    return FilePlan(whole.splits, columns)
                cuts = range(0, max(file.size, 1), split_bytes)
                pieces = [(cut, min(cut + split_bytes, file.size)) for cut in cuts]
                return FilePlan(
                    [Split(file, file_format, i, a, b, b - a) for i, (a, b) in enumerate(pieces)],
                    columns,
                )
    except Exception:  # reading the split meets the same error, and reports it
        return whole
    return FilePlan(_group(file, file_format, sizes, split_bytes) or whole.splits, columns)


def _group(file: InputFile, file_format: Format, sizes: list[int], limit: int) -> list[Split]:
    """Neighbouring row groups or record batches, together at most ``limit`` bytes."""
    splits: list[Split] = []
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            splits.append(Split(file, file_format, len(splits), start, i, total))
            start, total = i, 0
        total += size
    if sizes:
        splits.append(Split(file, file_format, len(splits), start, len(sizes), total))
    return splits


def _first_keys(file: io.BufferedIOBase) -> list[str] | None:
    for _, line in read_lines(file, 0, None, READ_BYTES):
        try:
            record = json.loads(line or b"")
        except ValueError:
            continue
        return list(record) if isinstance(record, dict) else None
    return None


def read_split(
    split: Split, columns: Columns, max_document_bytes: int
) -> Iterator[Document | Reject]:
    """The records of a split in order, each as a document or with what is wrong with it.

    Raises:
        BadFileError: content cannot be decoded any further, or a column is missing or of a wrong
            type. What came before stands.
        OSError and others of the filesystem: the file cannot be read now.
    """
    try:
        with open_input(split.file.url) as raw:
            if split.format == "parquet":
                records = _parquet_records(raw, split, columns)
            elif split.format == "arrow":
                records = _arrow_records(raw, split, columns)
            else:
                plain = open_decompressed(raw, split.file.name)
                if split.format == "text":
                    # One byte more tells a text that is too long without reading all of it.
                    records = iter([("0", {columns.text: plain.read(max_document_bytes + 1)})])
                else:
                    records = _jsonl_records(plain, split, max_document_bytes)
            for position, record in records:
                yield _document(split.file.name, position, record, columns, max_document_bytes)
    except Exception as error:
        if not _is_broken_content(error):
            raise
        raise BadFileError(f"truncated or corrupt: {error}") from error


def _is_broken_content(error: Exception) -> bool:
    """Whether an error is about what a file holds, not about reaching it."""
    if isinstance(error, (pa.ArrowInvalid, EOFError, zlib.error, zstandard.ZstdError)):
        return True
    # Decoders report broken content as an OSError without a number of the operating system.
    return type(error) in (OSError, gzip.BadGzipFile) and error.errno is None  # type: ignore[attr-defined]


Record = tuple[str, dict[str, Any] | str]
"""Position, and the wanted fields or the reason why there are none."""


def _document(
    name: str, position: str, record: dict[str, Any] | str, columns: Columns, max_bytes: int
) -> Document | Reject:
    if isinstance(record, str):
        return Reject(position, record)
    missing = next((column for column in columns.all if column not in record), None)
    if missing is not None:
        return Reject(position, f"no field {missing!r}")
    text = record[columns.text]
    try:
        data = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        return Reject(position, f"{columns.text!r} holds a lone surrogate: not Unicode text")
    if not isinstance(data, bytes):
        what = "null" if data is None else f"{type(data).__name__}, not a string"
        return Reject(position, f"{columns.text!r} is {what}")
    if len(data) > max_bytes:
        return Reject(position, f"longer than {max_bytes} bytes (--max-document-bytes)")
    if isinstance(text, bytes):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            where = f"{error.reason} at byte {error.start}"
            return Reject(position, f"{columns.text!r} is not valid UTF-8: {where}")
    if columns.id is None:
        sample_id = f"{name}#{position}"
    elif record[columns.id] is None:
        return Reject(position, f"{columns.id!r} is null")
    else:
        sample_id = _as_string(record[columns.id])
    return Document(
        position, sample_id, data, tuple(_as_string(record[name]) for name in columns.metadata)
    )


def _as_string(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _jsonl_records(
    file: io.BufferedIOBase, split: Split, max_document_bytes: int
) -> Iterator[Record]:
    # JSON may need 6 bytes (\u0041) for one byte of text, and other fields their own.
    longest = 6 * max_document_bytes + READ_BYTES
    for offset, line in read_lines(file, split.start, split.stop, longest):
        if line is None:
            yield str(offset), f"line of more than {longest} bytes (--max-document-bytes)"
            continue
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield str(offset), f"line is not valid UTF-8: {error.reason} at byte {error.start}"
        except (ValueError, RecursionError) as error:
            yield str(offset), f"line is not valid JSON: {error}"
        else:
            yield str(offset), record if isinstance(record, dict) else "line is not a JSON object"


def _parquet_records(raw: io.BufferedIOBase, split: Split, columns: Columns) -> Iterator[Record]:
    # With a buffer size, column chunks are streamed instead of read whole.
    parquet = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
    _check_columns(parquet.schema_arrow, columns)
    metadata = parquet.metadata
    stop = metadata.num_row_groups if split.stop is None else split.stop
    position = sum(metadata.row_group(i).num_rows for i in range(split.start))
    for i in range(split.start, stop):
        group = metadata.row_group(i)
        rows = max(1, READ_BYTES * group.num_rows // max(group.total_byte_size, 1))
        batches = parquet.iter_batches(
            min(rows, 8192), row_groups=[i], columns=columns.all, use_threads=False
        )
        for batch in batches:
            for row in _rows(batch):
                yield str(position), row
                position += 1


def _arrow_records(raw: io.BufferedIOBase, split: Split, columns: Columns) -> Iterator[Record]:
    reader = _open_arrow(raw)
    _check_columns(reader.schema, columns)
    batches: Iterable[pa.RecordBatch] = reader
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        stop = reader.num_record_batches if split.stop is None else split.stop
        batches = (reader.get_batch(i) for i in range(split.start, stop))
    for i, batch in enumerate(batches, split.start):
        for row, values in enumerate(_rows(batch.select(columns.all))):
            yield f"{i}:{row}", values


def _open_arrow(
    raw: io.BufferedIOBase,
) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    """Either of the IPC formats: the file format begins with its name, the stream does not."""
    is_file = raw.read(6) == b"ARROW1"
    raw.seek(0)
    return pa.ipc.open_file(raw) if is_file else pa.ipc.open_stream(raw)


def _check_columns(schema: pa.Schema, columns: Columns) -> None:
    for name in columns.all:
        if name not in schema.names:
            raise BadFileError(f"no column {name!r}; there are {', '.join(schema.names)}")
    text = schema.field(columns.text).type
    if pa.types.is_dictionary(text):
        text = text.value_type
    if text not in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
    ):
        raise BadFileError(f"column {columns.text!r} is {text}, not a string")


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as dicts, a few at a time: Python values take more room than Arrow's."""
    for start in range(0, batch.num_rows, 1024):
        piece = batch.slice(start, 1024)
        columns = {name: _values(piece.column(name)) for name in batch.schema.names}
        for i in range(piece.num_rows):
            yield {name: values[i] for name, values in columns.items()}


def _values(column: pa.Array) -> list[Any]:
    """Python values; strings as bytes, because Arrow does not check that they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()
