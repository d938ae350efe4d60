"""Readers: input files → splits → documents, streaming, with bounded memory.

A *split* is the part of a file that one worker reads: row groups of a Parquet file, record batches
of an Arrow file, a byte range of a plain JSONL file, any other file as a whole. A *record* is what
a file offers as a document: it becomes a :class:`Document` or, with a reason, a :class:`Reject`.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, NamedTuple

import orjson
import pyarrow as pa
import zstandard

from pipeline.corpus.columnar import READ_BYTES, arrow_rows, parquet_rows
from pipeline.corpus.lines import open_decompressed, read_lines
from pipeline.errors import (
    BadDocumentError,
    BadFileError,
    PipelineError,
    UnreachableFileError,
)
from pipeline.storage.listing import InputFile
from pipeline.storage.output import open_input

Format = Literal["auto", "parquet", "jsonl", "arrow", "text"]
COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    **{f".{end}{c}": "jsonl" for end in ("jsonl", "ndjson", "json") for c in COMPRESSIONS},
    **{f".{end}{c}": "text" for end in ("txt", "text", "md", "rst") for c in COMPRESSIONS},
}
BOM = b"\xef\xbb\xbf"


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
    """Wanted metadata columns; numbers, lists and the like as JSON, None where there is none."""


class Reject(NamedTuple):
    position: str
    reason: str


def file_format(file: InputFile, wanted: Format) -> Format | None:
    """The format asked for, or the one that the name tells; None if it does not tell."""
    if wanted != "auto":
        return wanted
    return next((f for end, f in SUFFIXES.items() if file.name.endswith(end)), None)


def read_split(
    split: Split, columns: Columns, max_document_bytes: int
) -> Iterator[Document | Reject]:
    """The records of a split in order, each as a document or with what is wrong with it.

    Raises:
        BadFileError: content cannot be decoded any further, or a column is missing or of a wrong
            type. What came before stands.
        OSError and others of the filesystem: the file cannot be read now.
    """
    records: Iterator[Record]
    try:
        with open_input(split.file.url) as raw:
            if split.format == "parquet":
                records = parquet_rows(raw, columns.all, split.start, split.stop)
            elif split.format == "arrow":
                records = arrow_rows(raw, columns.all, split.start, split.stop)
            else:
                plain = open_decompressed(raw, split.file.name)
                if split.format == "text":
                    # One byte more tells a text that is too long without reading all of it.
                    records = iter([("0", {columns.text: plain.read(max_document_bytes + 1)})])
                else:
                    records = _jsonl_records(plain, split, columns, max_document_bytes)
            for position, record in records:
                yield _document(split.file.name, position, record, columns, max_document_bytes)
    except Exception as error:
        if not _is_broken_content(error):
            raise
        raise BadFileError(f"truncated or corrupt: {error}") from error


def read_records(
    split: Split, columns: Columns, max_document_bytes: int
) -> Iterator[Document | Reject]:
    """The same, where whatever a filesystem raises is one error.

    Raises:
        BadFileError: as above.
        UnreachableFileError: the file cannot be read now.
    """
    try:
        yield from read_split(split, columns, max_document_bytes)
    except PipelineError:
        raise
    except Exception as error:  # each filesystem has its own; all mean the same here
        raise UnreachableFileError(f"{split.file.url}: cannot be read: {error}") from error


def bad_document(url: str, reject: Reject) -> BadDocumentError:
    """What is raised where a document cannot be used and the job is to stop at such."""
    return BadDocumentError(
        f"{url}, position {reject.position}: {reject.reason} "
        "(--on-bad-document reject goes on without such documents)"
    )


WHOLE_FILE = "whole file"
"""Position of a file among its own rejects."""


def rejects_json(source: str, rejects: Sequence[Reject], error: str | None) -> bytes:
    """Lines of a rejects file: bad documents, then the file itself if it could not be read on."""
    lines = [{"file": source, "position": r.position, "reason": r.reason} for r in rejects]
    if error:
        lines.append({"file": source, "position": WHOLE_FILE, "reason": error})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _is_broken_content(error: Exception) -> bool:
    """Whether an error is about what a file holds, not about reaching it."""
    decoding = (EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError)
    if isinstance(error, (pa.ArrowInvalid, pa.ArrowNotImplementedError, *decoding)):
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
    for needed in (columns.text, columns.id):
        if needed is not None and needed not in record:
            return Reject(position, f"no field {needed!r}")
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
        position, sample_id, data, tuple(_as_string(record.get(name)) for name in columns.metadata)
    )


def _as_string(value: Any) -> Any:
    """An id or metadata as a string that can be stored: what is not Unicode text is replaced."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    text = value if isinstance(value, str) else _as_json(value)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    except TypeError:  # a date, a decimal number, or something that holds one
        inside = isinstance(value, (dict, list))
        return json.dumps(value, ensure_ascii=False, default=str) if inside else str(value)


def json_line(offset: int, line: bytes, columns: Sequence[str] = ()) -> Any:
    """The value in the line that begins at ``offset``, of which these fields are wanted."""
    if not offset:
        line = line.removeprefix(BOM)
    with suppress(orjson.JSONDecodeError):
        record = orjson.loads(line)
        if isinstance(record, dict) and all(
            isinstance(record.get(name, ""), (str, NoneType)) for name in columns
        ):
            return record
    # Slower, but it knows large integers, NaN and lone surrogates, and says where a line is wrong.
    return json.loads(line.decode())


def _jsonl_records(
    file: io.BufferedIOBase, split: Split, columns: Columns, max_document_bytes: int
) -> Iterator[Record]:
    # JSON may need 6 bytes (\u0041) for one byte of text, and other fields their own.
    longest = 6 * max_document_bytes + READ_BYTES
    wanted = columns.all
    for offset, line in read_lines(file, split.start, split.stop, longest):
        if line is None:
            yield str(offset), f"line of more than {longest} bytes (--max-document-bytes)"
            continue
        if not line or line.isspace():
            continue
        try:
            record = json_line(offset, line, wanted)
        except UnicodeDecodeError as error:
            yield str(offset), f"line is not valid UTF-8: {error.reason} at byte {error.start}"
        except (ValueError, RecursionError) as error:
            yield str(offset), f"line is not valid JSON: {error}"
        else:
            yield str(offset), record if isinstance(record, dict) else "line is not a JSON object"
