"""The counts of a shard set: taken from its manifest, or counted again by
:mod:`pipeline.report.recount`; and several sets added up as one.

Nothing here knows what a report says of the counts: see :mod:`pipeline.report.figures`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from model.patcher import Patcher, PatcherValues
from model.provenance import EntropyModelIdentity, PatchProvenance, patch_differences
from model.rules import find_rule
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch.record import LOG
from pipeline.report.held_out import HeldOut
from pipeline.shards.entries import Shard
from pipeline.shards.lost import lost
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.sources import source_names
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.groups import GroupCounts, Groups
from pipeline.statistics.summary import Summary
from pipeline.statistics.threshold_curve import ThresholdCurve
from pipeline.storage.output import OutputDirectory

Settings = dict[str, Any]
"""A JSON object of a manifest, which a report passes on as it is."""


@dataclass(frozen=True)
class Provenance:
    """How a set was made, as its manifest says it."""

    patcher: Settings = field(default_factory=dict)
    entropy_model: Settings = field(default_factory=dict)
    configuration: Settings = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Provenance":
        return cls(**{f.name: manifest.get(f.name, {}) for f in fields(cls)})

    @property
    def rule(self) -> str:
        """The boundary rule's name; a manifest leaves the default one out."""
        rule: str = self.patcher.get("rule", "global")
        return rule

    def patches(self) -> PatchProvenance:
        """The part that decides the patches; merged sets of different thresholds have the
        threshold 0 here."""
        values = dict(self.patcher)
        if find_rule(self.rule).compares:
            values.setdefault("threshold", 0.0)
        identity = EntropyModelIdentity.from_json(self.entropy_model)
        return PatchProvenance(Patcher.from_json(cast(PatcherValues, values)), identity)

    def common(self, other: "Provenance") -> "Provenance":
        """The settings that are the same in both."""

        def both(a: Settings, b: Settings) -> Settings:
            return {key: value for key, value in a.items() if b.get(key) == value}

        return Provenance(
            both(self.patcher, other.patcher),
            both(self.entropy_model, other.entropy_model),
            both(self.configuration, other.configuration),
        )


@dataclass(frozen=True)
class RunTime:
    """How long one run of patch_corpus.py took; :func:`pipeline.patch.record.log_run` writes it."""

    bytes: int
    """UTF-8 bytes of text that the run patched."""
    cpus: float
    ended: str
    """ISO 8601, UTC."""
    gpus: float
    seconds: float


@dataclass(frozen=True)
class SoFar:
    """How much of its input an unfinished set has patched."""

    input_bytes_done: int
    """Bytes of text, about."""
    input_bytes: int
    """All of the input: bytes of text, about."""

    @property
    def share(self) -> float:
        """The part that is done, 0 to 1."""
        return self.input_bytes_done / self.input_bytes if self.input_bytes else 0.0


@dataclass(frozen=True)
class SetCounts:
    """The counts of a shard set, or of several sets as one."""

    name: str
    url: str
    provenance: Provenance
    statistics: PatchStatistics
    summary: Summary
    entries: Sequence[Shard]
    runs: Sequence[RunTime] = ()
    sources: Groups = field(default_factory=dict)
    """Counts by input file or, where files share shards, by directory; of merged sets, by set."""
    curve: ThresholdCurve | None = None
    """The curve with the splits of ``max_patch_length``, which the summary's curve leaves out;
    None where it was not counted."""
    problems: Sequence[str] = ()
    """One message for each damaged shard; damaged shards are not counted."""
    so_far: SoFar | None = None
    """None for a set that is finished."""
    held_out: HeldOut | None = None
    """Its validation set; None if there is none, and for merged sets."""

    @classmethod
    def of(
        cls,
        name: str,
        shards: ShardSet,
        statistics: PatchStatistics,
        summary: Summary,
        entries: Sequence[Shard],
    ) -> "SetCounts":
        """Counts of a set, with everything that its directory says besides."""
        return cls(
            name,
            shards.output.url,
            Provenance.of(shards.manifest),
            statistics,
            summary,
            entries,
            run_times(shards.output),
            sources_of(entries, [file["name"] for file in shards.manifest.get("sources", [])]),
        )


def read_counts(name: str, shards: ShardSet) -> SetCounts:
    """The counts that the manifest of a set holds.

    Raises:
        PipelineError: an earlier release wrote the manifest, without a summary.
    """
    summary = shards.summary
    if summary is None:
        raise PipelineError(
            f"{shards.output.url}: its manifest has no summary, because an earlier release patched "
            "it; --recompute reads the shards themselves"
        )
    counts = SetCounts.of(name, shards, shards.statistics, summary, shards.entries)
    return replace(counts, problems=list(lost(shards)))


def run_times(output: OutputDirectory) -> list[RunTime]:
    """How long the runs took; nothing where a record is damaged: only the speed is then unknown."""
    try:
        return [RunTime(**values) for values in output.read_all_json(LOG).values()]
    except (PipelineError, TypeError):
        return []


def sources_of(entries: Sequence[Shard], files: Sequence[str]) -> Groups:
    """Counts by input file, or by directory where files share shards.

    Args:
        files: names of all input files.
    """
    groups: Groups = {}
    for entry, source in zip(entries, source_names(entries, files), strict=True):
        counts = GroupCounts(entry.documents, entry.bytes, entry.patches, entry.entropy)
        groups[source] = groups.get(source, GroupCounts()) + counts
    return groups


def merge_sets(sets: Iterable[SetCounts]) -> SetCounts:
    """Several sets as one, whose sources are the sets. Holds one of them at a time.

    Raises:
        ConfigError: they cannot be merged, see :func:`check_mergeable`.
    """
    return merge_parts([merge_part(sets)])


def merge_part(sets: Iterable[SetCounts]) -> SetCounts:
    """Some of the sets of a merge, added up; :func:`merge_parts` adds up several such parts, which
    other processes may have made.

    Raises:
        ConfigError: they cannot be merged.
    """
    return _sum(map(_as_source, sets))


def merge_parts(parts: Iterable[SetCounts]) -> SetCounts:
    """All sets of a merge as one, from its parts.

    Raises:
        ConfigError: they cannot be merged.
    """
    total = _sum(parts)
    if len(total.sources) == 1:
        return total
    return replace(total, name=f"{len(total.sources):,} sets", url=f"{total.url}, …")


def _as_source(counts: SetCounts) -> SetCounts:
    """A set with itself as its one source."""
    sources = {counts.name: sum(counts.sources.values(), GroupCounts())}
    return replace(counts, sources=sources)


def _sum(parts: Iterable[SetCounts]) -> SetCounts:
    total: SetCounts | None = None
    sources: Groups = {}
    entries: list[Shard] = []
    for counts in parts:
        sources |= counts.sources
        entries += counts.entries
        total = counts if total is None else _added(total, counts)
    assert total is not None
    return replace(total, sources=sources, entries=entries)


def check_mergeable(a: tuple[str, Provenance], b: tuple[str, Provenance]) -> None:
    """Check that two sets can be added up.

    Args:
        a: the URL of a set, and how it was made.
        b: those of the other set.

    Raises:
        ConfigError: the sets can only be compared: their boundary rules differ in more than the
            threshold, or use the entropies of different models.
    """
    (url_a, of_a), (url_b, of_b) = a, b
    differ = patch_differences(
        of_a.patches(), of_b.patches(), (url_a, url_b), any_threshold=True
    ).boundaries
    if differ:
        raise ConfigError(f"--merge: {differ}; without --merge they are compared")


def _added(a: SetCounts, b: SetCounts) -> SetCounts:
    """Two sets as one, all but name, sources and entries, which :func:`_sum` collects."""
    check_mergeable((a.url, a.provenance), (b.url, b.provenance))
    return replace(
        a,
        provenance=a.provenance.common(b.provenance),
        statistics=a.statistics + b.statistics,
        summary=a.summary + b.summary,
        runs=[*a.runs, *b.runs],
        curve=_added_curves(a, b),
        problems=[*a.problems, *b.problems],
    )


def _added_curves(a: SetCounts, b: SetCounts) -> ThresholdCurve | None:
    """The sum of two curves, if both are known; a set without documents changes nothing."""
    for one, other in ((a, b), (b, a)):
        if not one.statistics.documents:
            return other.curve
    return None if a.curve is None or b.curve is None else a.curve + b.curve
