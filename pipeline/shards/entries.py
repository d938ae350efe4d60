"""The record of each shard: it commits the shard, and the manifest repeats it."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.errors import PipelineError
from pipeline.statistics.counts import PatchStatistics, PatchStatisticsRecord, without_histograms
from pipeline.storage.json_shape import problem_of
from pipeline.storage.output import OutputDirectory, to_json


@dataclass
class ShardEntry:
    """The record of one shard: it commits the shard, and the manifest repeats it."""

    name: str
    source: str
    """Name of the input file."""
    records: int = 0
    """Records of the split that this shard stands for: documents and rejects."""
    rejects: int = 0
    last: bool = False
    """True if the split ends with this shard."""
    error: str | None = None
    """Why the file could not be read to its end."""
    shard_bytes: int = 0
    """Size of the Arrow file; there is none if there was no document."""
    sha256: str | None = None
    """Hash of the Arrow file; None if there is no file."""
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

    @property
    def path(self) -> str:
        return f"shards/{self.name}.arrow"

    @property
    def rejects_path(self) -> str:
        return f"rejects/{self.name}.jsonl"

    @property
    def summary_path(self) -> str:
        return f"summaries/{self.name}.json"

    def without_histograms(self) -> "ShardEntry":
        """A copy that lacks the histograms, which are long."""
        return replace(self, statistics=without_histograms(self.statistics))

    @property
    def patch_statistics(self) -> PatchStatistics:
        return PatchStatistics.from_json(self.statistics)


def shard_name(file_index: int, split_index: int, piece: int) -> str:
    """The shard's name: numbers of its input file, of the split of that, and of its own."""
    return f"{file_index:06d}-{split_index:05d}-{piece:05d}"


def entry_path(name: str) -> str:
    """The path of a shard's entry, below the output."""
    return f"entries/{name}.json"


def commit_entry(output: OutputDirectory, entry: ShardEntry) -> None:
    """The atomic step that makes a shard exist; its files have to be in place."""
    output.write(entry_path(entry.name), to_json(asdict(entry)))


def read_entry(output: OutputDirectory, name: str) -> ShardEntry:
    """The committed entry of a shard.

    Raises:
        FileNotFoundError: the shard is not committed.
        PipelineError: its entry is damaged; names the file.
    """
    return _parse(output, name, output.read_json(entry_path(name)))


def read_entries(output: OutputDirectory) -> dict[str, ShardEntry]:
    """All committed entries, by name.

    Raises:
        PipelineError: one is damaged; names the file.
    """
    read = output.read_all_json("entries").items()
    entries = (_parse(output, file.removesuffix(".json"), values) for file, values in read)
    return {entry.name: entry for entry in entries}


def _parse(output: OutputDirectory, name: str, values: Any) -> ShardEntry:
    try:
        return ShardEntry.from_json(values)
    except ValueError as error:
        raise PipelineError(
            f"{output.locate(entry_path(name))}: is damaged: {error}; restore it, or start anew "
            "with --overwrite"
        ) from error
