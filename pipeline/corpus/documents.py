"""Records of input files as documents, streaming, with bounded memory.

A *record* is what a file offers as a document: it becomes a :class:`Document` or, with a reason, a
:class:`Reject`; none disappears.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from pipeline.corpus.beside import entropies_of, patch_lengths_at, patch_lengths_of
from pipeline.corpus.content import check_compression, check_is_there
from pipeline.corpus.fields import listed, partition_values
from pipeline.corpus.formats import FORMATS
from pipeline.corpus.headers.limits import most_bytes
from pipeline.corpus.lines import open_decompressed
from pipeline.corpus.splits import FilePlan, Split
from pipeline.corpus.values import Unusable, as_json
from pipeline.errors import (
    BadDocumentError,
    BadFileError,
    ConfigError,
    PipelineError,
    UnreachableFileError,
    message_of,
    translated,
)
from pipeline.storage.listing import check_unchanged
from pipeline.storage.watched_file import WatchedFile


@dataclass(frozen=True)
class Columns:
    """The fields of a record that are wanted."""

    text: str = "text"
    id: str | None = None
    """Without one a document's id is ``file name#position``."""
    metadata: tuple[str, ...] = ()
    usual_id: str | None = None
    """Gives ids where nobody named a column (:mod:`pipeline.corpus.ids`): a record that lacks it is
    called by its place, not rejected."""
    entropies: str | None = None
    """Lists of entropies; see :func:`pipeline.corpus.beside.entropies_of`."""
    patch_lengths: str | None = None
    """Lists of patch lengths; see :func:`pipeline.corpus.beside.patch_lengths_of`."""
    patch_offsets: str | None = None
    """Lists of places where patches start; see :func:`pipeline.corpus.beside.patch_lengths_at`."""

    @property
    def all(self) -> list[str]:
        """All of them, each once; the first is the text."""
        wanted = (self.text, self.id or self.usual_id, *self.metadata, *self.numbers)
        return list(dict.fromkeys(filter(None, wanted)))

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns that hold a list of numbers for each document."""
        return tuple(filter(None, (self.entropies, self.patch_lengths, self.patch_offsets)))

    @property
    def by_flag(self) -> dict[str, str | None]:
        """The columns that have to be there, without metadata, by the flags that name them."""
        return {
            "--text-column": self.text,
            "--id-column": self.id,
            "--entropies-column": self.entropies,
            "--patch-lengths-column": self.patch_lengths,
            "--patch-offsets-column": self.patch_offsets,
        }


def check_columns(
    plans: Iterable[FilePlan], columns: Columns, metadata_flag: str = "--keep-columns"
) -> None:
    """Check that each wanted column is in some file. Files that do not tell, such as empty ones,
    are passed over.

    Args:
        metadata_flag: the flag that names columns of metadata, for the error.

    Raises:
        ConfigError: no file has a column that is wanted, or there are no columns to choose the
            text from; names the flag.
    """
    plans = list(plans)
    formats = {plan.splits[0].format for plan in plans}
    if columns.text != Columns.text and not any(FORMATS[name].has_columns for name in formats):
        raise ConfigError(
            f"--text-column: files of the format {' and '.join(sorted(formats))} are one text each "
            "and have no columns; leave it out, or name the --input-format"
        )
    existing: dict[str, None] = {}
    for plan in plans:
        split = plan.splits[0]
        offered = plan.columns if FORMATS[split.format].has_columns else [columns.text]
        existing |= dict.fromkeys(offered or ())
        if offered is not None:
            existing |= dict.fromkeys(partition_values(split.file))
    if not existing:
        return
    sampled = [FORMATS[name] for name in formats if FORMATS[name].asked]
    where = "".join(f" (of {form.title}, {form.asked})" for form in sampled)
    wanted = [*columns.by_flag.items(), *((metadata_flag, name) for name in columns.metadata)]
    for flag, name in wanted:
        if name and name not in existing:
            raise ConfigError(
                f"{flag}: no input file has a column {name!r}; there are: {listed(existing)}{where}"
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
    entropies: np.ndarray | None = None
    """float16, nats, one per token; None if they are not wanted."""
    patch_lengths: np.ndarray | None = None
    """int32, tokens of each patch as the input says; None if they are not wanted."""

    @property
    def side_bytes(self) -> int:
        """Characters of id and metadata: what is held of a document beside its text."""
        return len(self.sample_id) + sum(len(value) for value in self.metadata if value)


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
        UnreachableFileError: the storage does not give the file now.
    """
    form, url = FORMATS[split.format], split.file.url
    partitions = partition_values(split.file)
    for name in (columns.text, columns.usual_id):  # no directory holds these, whatever it is called
        partitions.pop(name or "", None)
    wanted = [name for name in columns.all if name not in partitions]
    check_unchanged(split.file)
    with translated(url, UnreachableFileError):
        source = WatchedFile(url)
    with source:
        raw = cast(io.BufferedIOBase, source)
        try:
            check_is_there(raw, split.file.size)
            file = raw
            if form.is_compressible:
                if not split.start:  # a compressed file is never cut
                    check_compression(raw, split.file.typed_name)
                limit = most_bytes(max_document_bytes)
                file = open_decompressed(raw, split.file.typed_name, limit)
            records = form.records_with_numbers(
                file, split.start, split.stop, wanted, columns.numbers, max_document_bytes
            )
            for position, record in records:
                if partitions and isinstance(record, dict):
                    record |= partitions
                yield _document(split.file.name, position, record, columns, max_document_bytes)
        except Exception as error:
            if source.failure is not None:
                why = message_of(source.failure)
                raise UnreachableFileError(f"{url}: cannot be read: {why}") from source.failure
            if isinstance(error, PipelineError):
                raise
            check_unchanged(split.file)
            raise BadFileError(f"truncated or corrupt: {message_of(error)}") from error
    check_unchanged(split.file)


def bad_document(url: str, reject: Reject) -> BadDocumentError:
    """The error that stops a job at a record that cannot be used."""
    return BadDocumentError(
        f"{url}, position {reject.position}: {reject.reason} "
        "(--on-bad-document reject continues without such documents)"
    )


def rejected_before(count: int) -> str:
    """A failure for people, where records are to stop a job that another run of it rejected."""
    documents = "1 document" if count == 1 else f"{count:,} documents"
    return (
        f"an earlier run, without --on-bad-document fail, rejected {documents} (rejects/ names "
        "them); mend the input and start anew with --overwrite"
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


def _document(
    name: str, position: str, record: dict[str, Any] | str, columns: Columns, max_bytes: int
) -> Document | Reject:
    if isinstance(record, str):
        return Reject(position, record)
    for needed in columns.by_flag.values():
        if needed is not None and needed not in record:
            return Reject(position, f"no field {needed!r}")
    for wanted, value in record.items():
        if type(value) is Unusable:
            return Reject(position, f"{wanted!r} {value}")
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
    given = record.get(columns.id or columns.usual_id or "")
    if given is None and columns.id is not None:
        return Reject(position, f"{columns.id!r} is null")
    sample_id = f"{name}#{position}" if given is None else _as_string(given)
    values = (record.get(name) for name in columns.metadata)
    metadata = tuple(None if value is None else _as_string(value) for value in values)
    try:
        return Document(position, sample_id, data, metadata, *_beside(record, columns, data))
    except _UnfitError as error:
        return Reject(position, str(error))


class _UnfitError(ValueError):
    """A list of numbers beside a text does not fit it."""


def _beside(
    record: dict[str, Any], columns: Columns, data: bytes
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Entropies and patch lengths of a record, as far as they are wanted.

    Raises:
        _UnfitError: they do not fit the text.
    """

    def checked(column: str | None, check: Callable[[Any, bytes], np.ndarray]) -> Any:
        try:
            return None if column is None else check(record[column], data)
        except ValueError as error:
            raise _UnfitError(f"{column!r} {error}") from error

    patch_lengths = checked(columns.patch_lengths, patch_lengths_of)
    if columns.patch_offsets is not None:
        patch_lengths = checked(columns.patch_offsets, patch_lengths_at)
    return checked(columns.entropies, entropies_of), patch_lengths


def _as_string(value: Any) -> str:
    """An id or metadata as a string that can be stored: what is not Unicode text is replaced."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    text = value if isinstance(value, str) else _as_json(value)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _as_json(value: Any) -> str:
    # A list or object may hold what JSON does not have, such as a date; alone, that is plain text.
    inside = isinstance(value, (dict, list))
    try:
        return json.dumps(
            value, ensure_ascii=False, sort_keys=True, default=as_json if inside else None
        )
    except TypeError:
        return str(value)
