"""Records of input files as documents, streaming, with bounded memory.

A *record* is what a file offers as a document: it becomes a :class:`Document` or, with a reason, a
:class:`Reject`; none disappears.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import zstandard

from pipeline.corpus.formats import FORMATS
from pipeline.corpus.lines import open_decompressed
from pipeline.corpus.splits import FilePlan, Split
from pipeline.errors import (
    BadDocumentError,
    BadFileError,
    ConfigError,
    UnreachableFileError,
    translated,
)
from pipeline.storage.output import open_input


@dataclass(frozen=True)
class Columns:
    """The fields of a record that are wanted."""

    text: str = "text"
    id: str | None = None
    """Without one a document's id is ``file name#position``."""
    metadata: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """All of them, each once; the first is the text."""
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.metadata]))


def check_columns(
    plans: Iterable[FilePlan], columns: Columns, metadata_flag: str = "--keep-columns"
) -> None:
    """Check that each wanted column is in some file; nothing is checked if a file does not tell.

    Args:
        metadata_flag: the flag that names columns of metadata, for the error.

    Raises:
        ConfigError: no file has a column that is wanted; names the flag.
    """
    existing: list[str] = []
    for plan in plans:
        has_columns = FORMATS[plan.splits[0].format].has_columns
        offered = plan.columns if has_columns else [columns.text]
        if offered is None:
            return
        existing += (name for name in offered if name not in existing)
    wanted = [("--text-column", columns.text), ("--id-column", columns.id)]
    wanted += [(metadata_flag, name) for name in columns.metadata]
    for flag, name in wanted:
        if name and name not in existing:
            raise ConfigError(
                f"{flag}: no input file has a column {name!r}; there are: {', '.join(existing)}"
            )


class Document(NamedTuple):
    """A record that can be used."""

    position: str
    """The place of the record in its file; its form depends on the format."""
    sample_id: str
    text: bytes
    """Valid UTF-8."""
    metadata: tuple[str | None, ...]
    """Wanted metadata columns; numbers, lists and the like as JSON, None where there is none."""


class Reject(NamedTuple):
    """A record that cannot be used."""

    position: str
    reason: str


def read_split(
    split: Split, columns: Columns, max_document_bytes: int
) -> Iterator[Document | Reject]:
    """The records of a split in order, each as a document or with the reason why it is none.

    Raises:
        BadFileError: content cannot be decoded any further, or a column is missing or of a wrong
            type. The records before that place were yielded.
        OSError and others of the filesystem: the file cannot be read now.
    """
    form = FORMATS[split.format]
    try:
        with open_input(split.file.url) as raw:
            file = open_decompressed(raw, split.file.name) if form.is_compressible else raw
            records = form.records(file, split.start, split.stop, columns.all, max_document_bytes)
            for position, record in records:
                yield _document(split.file.name, position, record, columns, max_document_bytes)
    except Exception as error:
        if not _is_broken_content(error):
            raise
        raise BadFileError(f"truncated or corrupt: {error}") from error


def read_records(
    split: Split, columns: Columns, max_document_bytes: int
) -> Iterator[Document | Reject]:
    """Read as :func:`read_split` does, with one error for whatever a filesystem raises.

    Raises:
        BadFileError: as :func:`read_split` does.
        UnreachableFileError: the file cannot be read now.
    """
    with translated(split.file.url, UnreachableFileError):
        yield from read_split(split, columns, max_document_bytes)


def bad_document(url: str, reject: Reject) -> BadDocumentError:
    """The error that stops a job at a record that cannot be used."""
    return BadDocumentError(
        f"{url}, position {reject.position}: {reject.reason} "
        "(--on-bad-document reject continues without such documents)"
    )


WHOLE_FILE = "whole file"
"""The position in the line that rejects a file itself."""


def rejects_json(source: str, rejects: Sequence[Reject], error: str | None) -> bytes:
    """Lines of a rejects file: a file's bad records, then the file itself if reading it failed.

    Args:
        source: name of the file.
        error: why it could not be read to its end.
    """
    lines = [{"file": source, "position": r.position, "reason": r.reason} for r in rejects]
    if error:
        lines.append({"file": source, "position": WHOLE_FILE, "reason": error})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _is_broken_content(error: Exception) -> bool:
    """True if an error is about the content of a file, not about reaching it."""
    decoding = (EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError)
    if isinstance(error, (pa.ArrowInvalid, pa.ArrowNotImplementedError, *decoding)):
        return True
    # Decoders report broken content as an OSError without a number of the operating system.
    return isinstance(error, OSError) and (
        type(error) in (OSError, gzip.BadGzipFile) and error.errno is None
    )


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
    values = (record.get(name) for name in columns.metadata)
    metadata = tuple(None if value is None else _as_string(value) for value in values)
    return Document(position, sample_id, data, metadata)


def _as_string(value: Any) -> str:
    """An id or metadata as a string that can be stored: what is not Unicode text is replaced."""
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
