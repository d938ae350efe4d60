"""The manifest that closes a shard set: every shard, and what they were made from and with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NotRequired, TypedDict, cast

from model.patcher import PatcherValues
from pipeline.errors import PipelineError
from pipeline.shards.entries import ShardEntry
from pipeline.statistics.counts import PatchStatistics, PatchStatisticsRecord
from pipeline.statistics.summary import Summary, SummaryRecord
from pipeline.storage.json_shape import problem_of
from pipeline.storage.output import OutputDirectory, to_json
from pipeline.storage.run_record import EXPORT, MANIFEST

FORMAT_VERSION = 1
SUMMARIES_AT_ONCE = 256
"""Summaries that are read at a time: each is some tens of kilobytes."""


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
    """Kind of device, and dtype."""
    reset_at_newline: bool
    flops_per_byte: float


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
    sources: NotRequired[list[SourceRecord]]
    unread: NotRequired[dict[str, Any]]
    """The files that the input holds and that were not read: ``count``, and ``files`` with the path
    and the reason of the first thousand."""
    configuration: NotRequired[dict[str, Any]]
    statistics: PatchStatisticsRecord
    """The sum of the shards'."""
    summary: NotRequired[SummaryRecord | None]
    """The sum of the shards' summaries."""
    shards: list[dict[str, Any]]
    """A :class:`ShardEntry` each."""


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
        raise PipelineError(
            f"{url}: no {MANIFEST}: not a shard set, or its job has not finished; "
            "run the same command again to finish it"
        ) from error
    if not isinstance(values, dict) or "shards" not in values:
        raise PipelineError(f"{url}: {_other_kind(values)}, not a shard set")
    version = values.get("format_version", FORMAT_VERSION)
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise PipelineError(
            f"{url}: format version {version} is not {FORMAT_VERSION}, the one that this "
            "release reads"
        )
    problem = (
        problem_of(values, Manifest, depth=1)
        or problem_of(values["columns"], list[str], "columns")
        or problem_of(values["statistics"], PatchStatisticsRecord, "statistics", depth=1)
    )
    if problem is not None:
        raise ValueError(problem)
    return cast(Manifest, values)


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


def write_manifest(
    output: OutputDirectory, provenance: Mapping[str, Any], entries: Sequence[ShardEntry]
) -> None:
    """Close the shard set.

    Args:
        provenance: how the shards were made, as the manifest says it: tokenizer, entropy model,
            rule, columns, sources, configuration.
    """
    total = sum((entry.patch_statistics for entry in entries), PatchStatistics())
    summary = read_summary(output, entries)
    manifest = {
        "format_version": FORMAT_VERSION,
        **provenance,
        "statistics": total.to_json(),
        "summary": None if summary is None else summary.to_json(),
        "shards": [asdict(entry) for entry in entries],
    }
    output.write(MANIFEST, to_json(manifest))


def read_summary(output: OutputDirectory, entries: Sequence[ShardEntry]) -> Summary | None:
    """The sum of the shards' summaries; None if one has none, because an earlier release wrote
    it."""
    names = [f"{entry.name}.json" for entry in entries]
    if not set(names) <= set(output.names("summaries")):
        return None
    total = Summary()
    for start in range(0, len(names), SUMMARIES_AT_ONCE):
        part = names[start : start + SUMMARIES_AT_ONCE]
        for values in output.read_all_json("summaries", part).values():
            total += Summary.from_json(values)
    return total
