"""Prepared corpora: what ``prepare_corpus.py`` leaves, and how other jobs find its chunks.

A prepared corpus is a directory::

    NAME.chunk.NN.parquet     shuffled documents: ``sample_id``, ``text``, metadata columns
    NAME.val.parquet          documents held out for validation
    rejects/NNNNNN.jsonl      records that could not be used: file, position, reason
    manifest.json             written last: sources, seed, counts, statistics, digests
    run.json                  the record of the run, written first
    tokenizer/                a tokenizer, if one was asked for
    exchange/                 what workers give to one another; removed at the end

or the same with ``.jsonl``, named as the published recipe does.
"""

from typing import Any, NotRequired, TypedDict, cast

from pipeline.errors import ConfigError, PipelineError
from pipeline.storage.json_shape import problem_of
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST, PREPARE, RECORD

FORMAT_VERSION = 1
"""The version of manifest and record."""
REJECTS = "rejects"
EXCHANGE = "exchange"
ID_COLUMN, TEXT_COLUMN = "sample_id", "text"
"""Columns of chunks."""

Statistics = dict[str, Any]
"""``DocumentStatistics`` as JSON."""


class ManifestColumns(TypedDict):
    """Columns of the input that were asked for."""

    text: str
    id: str | None
    metadata: list[str]


class ManifestCounts(TypedDict):
    """Numbers of records and documents."""

    records: int
    rejects: int
    duplicates: int
    validation: int
    chunks: int


class ManifestSource(TypedDict):
    """An input file, and what came of it."""

    name: str
    url: str
    bytes: int
    version: str
    documents: Statistics
    rejects: int
    error: str | None
    """Why it could not be read to its end."""


class ManifestChunk(TypedDict):
    """A chunk, or the validation set."""

    name: str
    documents: Statistics
    duplicates: Statistics
    file_bytes: int
    sha256: str


class PreparedManifest(TypedDict):
    """The content of ``manifest.json``."""

    format_version: int
    stage: str
    configuration: dict[str, Any]
    """The settings that decide what is in the chunks, by name of the flag."""
    columns: ManifestColumns
    counts: ManifestCounts
    statistics: Statistics
    """Counts over all documents that were written."""
    sources: list[ManifestSource]
    validation: ManifestChunk | None
    chunks: list[ManifestChunk]
    unread: NotRequired[dict[str, Any]]
    """The files that the input holds and that were not read: ``count``, and ``files`` with the path
    and the reason of the first thousand."""


def read_prepared_manifest(directory: OutputDirectory) -> PreparedManifest:
    """The manifest of a prepared corpus.

    Raises:
        FileNotFoundError: there is none.
        PipelineError: it cannot be read, or is not such a manifest; names the file.
    """
    value = directory.read_json(MANIFEST)
    problem = problem_of(value, PreparedManifest)
    if problem is None and not _is_of_prepared(value):
        problem = f"its stage is {value['stage']!r}, not {PREPARE!r}"
    if problem is not None:
        raise PipelineError(
            f"{directory.locate(MANIFEST)}: is not the manifest of a prepared corpus: {problem}; "
            "restore it, or prepare the corpus anew with --overwrite"
        )
    return cast(PreparedManifest, value)


def prepared_chunks(url: str) -> dict[str, ManifestChunk] | None:
    """The chunks of the prepared corpus in a directory by their URLs; None if there is no such
    corpus.

    Raises:
        ConfigError: there is one, but it is not finished, or its manifest or record is damaged.
    """
    try:
        directory = OutputDirectory(url)
        existing = [name for name in (MANIFEST, RECORD) if directory.exists(name)]
    except PipelineError:
        return None  # whoever lists the input says what is wrong with it
    try:
        values = {name: directory.read_json(name) for name in existing}
        if not any(map(_is_of_prepared, values.values())):
            return None
        if MANIFEST in values:
            chunks = read_prepared_manifest(directory)["chunks"]
            return {directory.locate(chunk["name"]): chunk for chunk in chunks}
    except PipelineError as error:
        raise ConfigError(f"--input {error}") from error
    raise ConfigError(
        f"--input {url}: this corpus is not prepared to its end; run its prepare_corpus.py "
        "command again"
    )


def prepared_validation(url: str) -> tuple[str, ManifestChunk] | None:
    """The URL of the validation file of a finished prepared corpus, and what its manifest says of
    it; None if there is none."""
    directory = OutputDirectory(url)
    held_out = read_prepared_manifest(directory)["validation"]
    return None if held_out is None else (directory.locate(held_out["name"]), held_out)


def _is_of_prepared(value: object) -> bool:
    """True if a manifest or record says that it belongs to a prepared corpus."""
    return isinstance(value, dict) and value.get("stage") == PREPARE
