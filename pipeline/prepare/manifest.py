"""The manifest of a prepared corpus: made when all chunks are written, if no document is lost."""

from pipeline.corpus.prepared import FORMAT_VERSION, PreparedManifest
from pipeline.errors import PipelineError
from pipeline.prepare.plan import Preparation, plain_values
from pipeline.prepare.shuffle import Chunk, Sorted, Source
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import PREPARE


def manifest_of(
    preparation: Preparation,
    units: dict[int, Sorted],
    merges: dict[int, Sorted],
    chunks: dict[int, Chunk],
) -> PreparedManifest:
    """The manifest of a corpus whose chunks are written.

    The documents read have to be the documents written and the duplicates dropped, as multisets of
    texts: their sums of hashes are compared, see ``DocumentStatistics.digest``.

    Args:
        units: results by number, as are the others.
        chunks: 0 is the validation set, if there is one.

    Raises:
        PipelineError: documents were lost, or came from nowhere.
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
    columns = preparation.shuffle.columns
    return {
        "format_version": FORMAT_VERSION,
        "stage": PREPARE,
        "configuration": preparation.settings,
        "columns": {"text": columns.text, "id": columns.id, "metadata": list(columns.metadata)},
        "counts": {
            "records": read.documents + rejects,
            "rejects": rejects,
            "duplicates": duplicates.documents,
            "validation": validation.documents.documents if validation else 0,
            "chunks": sum(c.documents.documents for n, c in chunks.items() if n),
        },
        "statistics": plain_values(written),
        "sources": [
            {
                "name": file.name,
                "url": file.url,
                "bytes": file.size,
                "version": file.version,
                "documents": plain_values(sources[file.name].documents),
                "rejects": sources[file.name].rejects,
                "error": sources[file.name].error,
            }
            for file in preparation.files
        ],
        "validation": plain_values(validation),
        "chunks": [plain_values(chunk) for number, chunk in sorted(chunks.items()) if number],
    }


def _sources(preparation: Preparation, units: dict[int, Sorted]) -> dict[str, Source]:
    """The counts of each file, added up over the units that read parts of it."""
    sources = {file.name: Source() for file in preparation.files}
    for _, unit in sorted(units.items()):
        for name, source in unit.sources.items():
            sources[name] += source
    return sources


def check_chunks(manifest: PreparedManifest, output: OutputDirectory) -> None:
    """
    Raises:
        PipelineError: a chunk that the manifest lists is gone, or has another size.
    """
    sizes = output.sizes()
    for chunk in [manifest["validation"], *manifest["chunks"]]:
        if chunk is None:
            continue
        size, written = sizes.get(chunk["name"]), chunk["file_bytes"]
        if size != written:
            what = "is gone" if size is None else f"has {size:,} bytes, {written:,} were written"
            raise PipelineError(f"{output.locate(chunk['name'])}: {what}; --overwrite starts anew")
