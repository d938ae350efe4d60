"""The record of each shard: it commits the shard, and the manifest repeats it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import NoneType
from typing import Any

from pipeline.errors import PipelineError
from pipeline.statistics.counts import PatchStatistics, PatchStatisticsRecord
from pipeline.storage.output import OutputDirectory, to_json

Kind = type | tuple[type, ...]


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
    """Whether the split ends with this shard."""
    error: str | None = None
    """Why the file could not be read to its end."""
    shard_bytes: int = 0
    """Size of the Arrow file; there is none if there was no document."""
    sha256: str | None = None
    """Hash of the Arrow file; None if there is no file."""
    statistics: PatchStatisticsRecord = field(default_factory=lambda: PatchStatistics().to_json())
    """:class:`PatchStatistics`: documents, bytes, patches and histograms."""

    @classmethod
    def from_json(cls, values: Any) -> "ShardEntry":
        """The entry that was written as JSON.

        Raises:
            ValueError: it is no entry; says what is wrong with it.
        """
        check_kinds(values, _ENTRY, _OPTIONAL)
        check_kinds(values.get("statistics", _NO_STATISTICS), _STATISTICS)
        try:
            return cls(**values)
        except TypeError as error:  # a key that is not known
            raise ValueError(str(error)) from error

    @property
    def path(self) -> str:
        return f"shards/{self.name}.arrow"

    @property
    def rejects_path(self) -> str:
        return f"rejects/{self.name}.jsonl"

    @property
    def summary_path(self) -> str:
        return f"summaries/{self.name}.json"

    @property
    def patch_statistics(self) -> PatchStatistics:
        return PatchStatistics.from_json(self.statistics)


_ENTRY: dict[str, Kind] = {
    "name": str,
    "source": str,
    "records": int,
    "rejects": int,
    "last": bool,
    "error": (str, NoneType),
    "shard_bytes": int,
    "sha256": (str, NoneType),
    "statistics": dict,
}
_OPTIONAL = _ENTRY.keys() - {"name", "source"}
_STATISTICS: dict[str, Kind] = {
    "documents": int,
    "bytes": int,
    "tokens": int,
    "patches": int,
    "patch_lengths": dict,
    "entropies": dict,
}
_NO_STATISTICS = PatchStatistics().to_json()


def check_statistics(values: Any) -> None:
    """
    Raises:
        ValueError: these are no statistics as :meth:`PatchStatistics.to_json` gives them.
    """
    check_kinds(values, _STATISTICS)


def check_kinds(
    values: Any, kinds: Mapping[str, Kind], optional: "set[str] | frozenset[str]" = frozenset()
) -> None:
    """Check a JSON object that was read.

    Args:
        kinds: the keys that it has to have, and the types of their values.
        optional: those of the keys that may be missing.

    Raises:
        ValueError: a key is missing, or a value is of another type; names it.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{values!r:.50} is no JSON object")
    for key, kind in kinds.items():
        if key not in values:
            if key in optional:
                continue
            raise ValueError(f"{key!r} is missing")
        if not isinstance(values[key], kind):
            raise ValueError(f"{key!r} cannot be {values[key]!r:.50}")


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
