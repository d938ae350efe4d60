"""The manifest of a shard set: what its shards were made from and with, and their sums."""

from typing import Any, NotRequired, TypedDict, cast

from model.patcher import PatcherValues
from pipeline.errors import PipelineError
from pipeline.shards.tables import TableRecord
from pipeline.statistics.counts import PatchStatisticsRecord
from pipeline.statistics.summary import SummaryRecord
from pipeline.storage.json_shape import problem_of
from pipeline.storage.listing import has_no_such_path
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import EXPORT, MANIFEST

FORMAT_VERSION = 2
VALIDATION = "validation"
"""The directory, below a shard set, of the set of held-out documents."""
OLDER_VERSIONS = (1,)
"""Versions that are read, too: version 1 has no hashes, and its entries are in the manifest."""


class TokenizerRecord(TypedDict):
    """The ids of the byte tokenizer."""

    offset: int
    """The id of byte 0."""
    bos: int
    eos: int
    vocabulary: int


class EntropyModelRecord(TypedDict, total=False):
    """The model that gave the entropies."""

    source: str
    """The directory, URL or hub id that the user gave, or ``ngram``."""
    fingerprint: str
    computed_in: str
    """Device, dtype and kind of GPU."""
    software: list[dict[str, str]]
    """The versions with which GPUs computed, one after the other; missing where CPUs did."""
    reset_at_newline: bool
    flops_per_byte: float
    column: str
    """The column of the input that the entropies were adopted from: another program computed
    them."""


class IdsRecord(TypedDict):
    """The column that documents have their ids from."""

    column: str | None
    """None: the ids are places, ``FILE#POSITION``."""
    others: list[str]
    """Further columns with usual names, between which nobody chose."""


class SourceRecord(TypedDict):
    """An input file."""

    name: str
    url: str | None
    """None in exports for others, if nobody else can reach it."""
    bytes: NotRequired[int]


class Manifest(TypedDict):
    """The content of ``manifest.json``; earlier releases wrote fewer keys."""

    format_version: int
    tokenizer: NotRequired[TokenizerRecord]
    entropy_model: NotRequired[EntropyModelRecord]
    patcher: PatcherValues
    columns: list[str]
    """Names of the columns, metadata last."""
    ids: NotRequired[IdsRecord]
    sources: NotRequired[list[SourceRecord]]
    unread: NotRequired[dict[str, Any]]
    """The files that the input holds and that were not read: ``count``, and ``files`` with the path
    and the reason of the first thousand."""
    configuration: NotRequired[dict[str, Any]]
    statistics: PatchStatisticsRecord
    """The sum of the shards'."""
    summary: NotRequired[SummaryRecord | None]
    """The sum of the shards' summaries."""
    entries: NotRequired[TableRecord]
    """The index of ``entries.arrow``, from version 2 on."""
    batches: NotRequired[TableRecord]
    """That of ``batches.arrow``."""
    shards: NotRequired[list[dict[str, Any]]]
    """In version 1: a :class:`ShardEntry` each."""


def validation_of(url: str) -> str:
    """The place of the set that ``patch_corpus.py`` makes of the documents that are held out of a
    prepared corpus, given the place of the set that it makes of the others."""
    return f"{url.rstrip('/')}/{VALIDATION}"


def read_manifest(output: OutputDirectory, url: str) -> Manifest:
    """The manifest of a shard set.

    Args:
        url: the set as the user named it: errors begin with it.

    Raises:
        PipelineError: there is none, or one of another format or kind.
        ValueError: it is damaged; says where in it.
    """
    try:
        values = output.read_json(MANIFEST)
    except FileNotFoundError as error:
        if has_no_such_path(url):
            raise PipelineError(f"{url}: no such directory") from error
        raise PipelineError(
            f"{url}: no {MANIFEST}: not a shard set, or its job has not finished; "
            "run the same command again to finish it"
        ) from error
    if not isinstance(values, dict) or not {"shards", "entries"} & values.keys():
        raise PipelineError(f"{url}: {_other_kind(values)}, not a shard set")
    version = values.get("format_version", 1)
    if isinstance(version, int) and version not in (FORMAT_VERSION, *OLDER_VERSIONS):
        raise PipelineError(
            f"{url}: is of format version {version}; this release reads versions up to "
            f"{FORMAT_VERSION}: install a newer one, or patch the corpus again"
        )
    problem = (
        problem_of(values, Manifest, depth=1)
        or problem_of(values["columns"], list[str], "columns")
        or problem_of(values["statistics"], PatchStatisticsRecord, "statistics", depth=1)
        or _table_problem(values)
    )
    if problem is not None:
        raise ValueError(problem)
    return cast(Manifest, values)


def _table_problem(values: dict[str, Any]) -> str | None:
    """The first thing that is wrong with what a manifest says of its shards."""
    if values.get("format_version", 1) == 1:
        return None if "shards" in values else "it has no 'shards'"
    for name in ("entries", "batches"):
        if name not in values:
            return f"it has no {name!r}"
        if problem := problem_of(values[name], TableRecord, name):
            return problem
    return None


def _other_kind(manifest: Any) -> str:
    """The kind of output that a manifest without shards belongs to."""
    if isinstance(manifest, dict) and "chunks" in manifest:
        return "a prepared corpus, which jobs/patch_corpus.py patches"
    if is_export(manifest):
        return "an export"
    return f"its {MANIFEST} is another program's"


def is_export(manifest: Any) -> bool:
    """True if ``export_shards.py`` wrote a manifest."""
    return isinstance(manifest, dict) and manifest.get("stage") == EXPORT
