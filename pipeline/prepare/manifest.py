"""The manifest of a prepared corpus: written when all is done, read by whoever uses it."""

from dataclasses import asdict
from typing import Any

from pipeline.errors import ConfigError, PipelineError
from pipeline.prepare.chunks import MANIFEST, RECORD, STAGE
from pipeline.prepare.plan import FORMAT_VERSION, Preparation, as_json
from pipeline.prepare.shuffle import Chunk, Sorted, Source
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.output import OutputDirectory

ID_COLUMN = "sample_id"
"""Of chunks."""


def manifest_of(
    preparation: Preparation,
    units: dict[int, Sorted],
    merges: dict[int, Sorted],
    chunks: dict[int, Chunk],
) -> dict[str, Any]:
    """What is told of a corpus when all is done.

    Args:
        chunks: by number; 0 is the validation set, if there is one.

    Raises:
        PipelineError: what was written is not what was read.
    """
    sources = _sources(preparation, units)
    read = sum((source.documents for source in sources.values()), DocumentStatistics())
    written = sum((chunk.documents for chunk in chunks.values()), DocumentStatistics())
    steps: list[Sorted | Chunk] = [*units.values(), *merges.values(), *chunks.values()]
    duplicates = sum((step.duplicates for step in steps), DocumentStatistics())
    if not read.same_texts(written + duplicates):
        raise PipelineError(
            f"documents were lost, or came from nowhere: {read.documents} were read, "
            f"{written.documents} written and {duplicates.documents} dropped as duplicates; this "
            "is a bug, or the files below exchange/ were changed; --overwrite starts anew"
        )
    rejects = sum(source.rejects for source in sources.values())
    validation = chunks.get(0)
    return {
        "format_version": FORMAT_VERSION,
        "stage": STAGE,
        "configuration": preparation.settings,
        "columns": asdict(preparation.shuffle.columns),
        "counts": {
            "records": read.documents + rejects,
            "rejects": rejects,
            "duplicates": duplicates.documents,
            "validation": validation.documents.documents if validation else 0,
            "chunks": sum(c.documents.documents for n, c in chunks.items() if n),
        },
        "statistics": as_json(written),
        "sources": [
            {"name": file.name, "url": file.url, "bytes": file.size, "version": file.version}
            | as_json(sources.get(file.name, Source()))
            for file in preparation.files
        ],
        "validation": as_json(validation),
        "chunks": [as_json(chunk) for number, chunk in sorted(chunks.items()) if number],
    }


def _sources(preparation: Preparation, units: dict[int, Sorted]) -> dict[str, Source]:
    """What came of each file; units hold parts of files."""
    sources = {file.name: Source() for file in preparation.files}
    for _, unit in sorted(units.items()):
        for name, source in unit.sources.items():
            sources[name] += source
    return sources


def check_there(manifest: dict[str, Any], output: OutputDirectory) -> None:
    """
    Raises:
        PipelineError: a chunk that the manifest tells of is gone.
    """
    names = [chunk["name"] for chunk in [manifest["validation"], *manifest["chunks"]] if chunk]
    gone = sorted(set(names) - set(output.names()))
    if gone:
        raise PipelineError(f"{output.locate(gone[0])}: is gone; --overwrite starts anew")


def prepared_chunks(url: str) -> list[str] | None:
    """URLs of the chunks of the prepared corpus in a directory; None if there is none.

    Raises:
        ConfigError: it is there, but not finished, or damaged.
    """
    try:
        directory = OutputDirectory(url)
        there = [name for name in (MANIFEST, RECORD) if directory.exists(name)]
    except PipelineError:
        return None  # whoever lists the input says what is wrong with it
    try:
        manifest, record = (
            directory.read_json(name) if name in there else None for name in (MANIFEST, RECORD)
        )
    except PipelineError as error:
        raise ConfigError(f"--input {error}") from error
    if manifest is not None and _is_of_prepared(manifest):
        return [directory.locate(chunk["name"]) for chunk in manifest["chunks"]]
    if _is_of_prepared(record):
        raise ConfigError(
            f"--input {url}: this corpus is not prepared to its end; run its prepare_corpus.py "
            "command again"
        )
    return None


def _is_of_prepared(value: Any) -> bool:
    return isinstance(value, dict) and value.get("stage") == STAGE
