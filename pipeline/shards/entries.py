"""The records of a shard: the entry that commits it, and the row that its set keeps of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import mul
from typing import Any

from pipeline.errors import PipelineError
from pipeline.shards.record_batches import WAY_ON, BatchesRecord, BatchIndex, WrittenFile
from pipeline.statistics.counts import ENTROPY_BIN, PatchStatistics, PatchStatisticsRecord
from pipeline.statistics.groups import ENTROPY_UNIT
from pipeline.storage.checked_json import parse_checked_json, to_checked_json
from pipeline.storage.json_shape import problem_of
from pipeline.storage.output import OutputDirectory

ENTRIES = "entries"
"""The directory that holds an entry per shard."""
SUMMARIES = "summaries"
"""The same for what a report knows of each shard beyond its entry."""


class _Files:
    """The places of a shard's files, below the output."""

    __slots__ = ()
    name: str

    @property
    def path(self) -> str:
        return shard_path(self.name)

    @property
    def rejects_path(self) -> str:
        return f"rejects/{self.name}.jsonl"

    @property
    def summary_path(self) -> str:
        return f"{SUMMARIES}/{self.name}.json"


@dataclass(slots=True)
class Shard(_Files):
    """One shard as a set knows it: a row of ``entries.arrow``, see :mod:`pipeline.shards.tables`.
    All of it but the histograms of its statistics."""

    name: str
    source: str
    """Name of the input file; where several share a shard, of the last one in it."""
    records: int
    """Records that this shard stands for: documents and rejects."""
    rejects: int
    last: bool
    """True if its unit, a split or files that share shards, ends with this shard."""
    error: str | None
    """Why the source could not be read to its end."""
    shard_bytes: int
    """Size of the Arrow file; 0 if there is none, because there was no document."""
    sha256: str | None
    """Hash of the Arrow file; None if there is no file."""
    documents: int
    bytes: int
    """UTF-8 bytes of text."""
    tokens: int
    patches: int
    entropy: int
    """Sum of the entropies of all tokens in ENTROPY_UNIT, as the histogram gives it: each counts
    as the middle of its bin."""
    batches: int | None
    """Number of record batches; None in format version 1, where the file alone tells."""
    first_batch: int
    """Number of the first one among those of all shards of the set."""

    def counting(self, statistics: PatchStatistics) -> "Shard":
        """This shard with other counts, such as those of its rows as they are now."""
        counts: dict[str, Any] = _counts(statistics.to_json())
        return replace(self, **counts)


@dataclass
class ShardEntry(_Files):
    """The record of one shard, which commits it: ``entries/NAME.json``."""

    name: str
    source: str
    """Name of the input file; where several share a shard, of the last one in it."""
    records: int = 0
    """Records that this shard stands for: documents and rejects."""
    rejects: int = 0
    last: bool = False
    """True if its unit, a split or files that share shards, ends with this shard."""
    error: str | None = None
    """Why the source could not be read to its end."""
    shard_bytes: int = 0
    """Size of the Arrow file; there is none if there was no document."""
    sha256: str | None = None
    """Hash of the Arrow file; None if there is no file."""
    batches: BatchesRecord | None = None
    """:class:`BatchIndex` of the Arrow file; None if there is none, and in format version 1."""
    statistics: PatchStatisticsRecord = field(default_factory=lambda: PatchStatistics().to_json())
    """:class:`PatchStatistics`: documents, bytes, patches and histograms."""

    @classmethod
    def from_json(cls, values: Any, at: str = "it") -> "ShardEntry":
        """The entry that was written as JSON.

        Args:
            at: the entry's place, for the error.

        Raises:
            ValueError: it is no entry; says what is wrong with it.
        """
        # Histograms have thousands of values, and there are thousands of entries.
        if problem := problem_of(values, cls, at, depth=2):
            raise ValueError(problem)
        return cls(**values)

    def describe(self, file: WrittenFile) -> None:
        """Take over what is known of the Arrow file."""
        self.shard_bytes, self.sha256 = file.bytes, file.sha256
        self.batches = file.batches.to_json()

    @property
    def patch_statistics(self) -> PatchStatistics:
        return PatchStatistics.from_json(self.statistics)

    @property
    def batch_index(self) -> BatchIndex | None:
        """
        Raises:
            TypeError, ValueError: it is damaged.
        """
        return None if self.batches is None else BatchIndex.from_json(self.batches)

    def row(self) -> Shard:
        """The shard as the set knows it."""
        number = 0 if self.sha256 is None else None
        return Shard(
            self.name,
            self.source,
            self.records,
            self.rejects,
            self.last,
            self.error,
            self.shard_bytes,
            self.sha256,
            **_counts(self.statistics),
            batches=number if self.batches is None else len(self.batches["rows"]),
            first_batch=0,
        )


def _counts(statistics: PatchStatisticsRecord) -> dict[str, int]:
    histogram = statistics["entropies"]
    whole = sum(map(mul, map(int, histogram), histogram.values()))
    middles = whole + sum(histogram.values()) / 2
    return {
        "documents": statistics["documents"],
        "bytes": statistics["bytes"],
        "tokens": statistics["tokens"],
        "patches": statistics["patches"],
        "entropy": round(middles * ENTROPY_BIN / ENTROPY_UNIT),
    }


def shard_name(file_index: int, split_index: int, piece: int) -> str:
    """The shard's name: numbers of its unit's first file, of the split of that, and its own."""
    return f"{file_index:06d}-{split_index:05d}-{piece:05d}"


def shard_path(name: str) -> str:
    """The path of a shard's Arrow file, below the output."""
    return f"shards/{name}.arrow"


def entry_path(name: str) -> str:
    """The path of a shard's entry, below the output."""
    return f"{ENTRIES}/{name}.json"


def commit_entry(output: OutputDirectory, entry: ShardEntry) -> None:
    """The atomic step that makes a shard exist; its files have to be in place."""
    output.write(entry_path(entry.name), to_checked_json(asdict(entry)))


def read_entry(output: OutputDirectory, name: str) -> ShardEntry:
    """The committed entry of a shard.

    Raises:
        FileNotFoundError: the shard is not committed.
        PipelineError: its entry is damaged; names the file.
    """
    return _parse(output, name, output.read(entry_path(name)))


def read_entries(
    output: OutputDirectory, names: Sequence[str] | None = None
) -> dict[str, ShardEntry]:
    """Committed entries, all or those of these shards, by name.

    Raises:
        FileNotFoundError: one of these shards is not committed.
        PipelineError: one is damaged; names the file.
    """
    names = committed_names(output) if names is None else names
    data = output.read_all([entry_path(name) for name in names])
    return {name: _parse(output, name, part) for name, part in zip(names, data, strict=True)}


def committed_names(output: OutputDirectory) -> list[str]:
    """The names of all shards that are committed, in their order."""
    return [file.removesuffix(".json") for file in output.names(ENTRIES)]


def _parse(output: OutputDirectory, name: str, data: bytes) -> ShardEntry:
    try:
        values = parse_checked_json(data)
        entry = ShardEntry.from_json(values)
        if entry.name != name:
            raise ValueError(f"it is that of {entry.name!r}")
        return entry
    except ValueError as error:
        raise PipelineError(
            f"{output.locate(entry_path(name))}: is damaged: {error}; {WAY_ON}"
        ) from error
