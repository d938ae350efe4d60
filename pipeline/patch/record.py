"""The record of a patching run: its files, its splits, and what its manifest will say.

Workers commit an entry for each shard; the entries and this record together tell what is left.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count, takewhile
from typing import Any, Self

from pipeline.corpus.splits import Split
from pipeline.errors import ConfigError
from pipeline.shards.entries import ShardEntry, read_entries, shard_name
from pipeline.shards.manifest import FORMAT_VERSION
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory, to_json
from pipeline.storage.run_record import (
    ANEW,
    MANIFEST,
    RunRecord,
    Written,
    changed_file_error,
    changed_files,
    reaching,
)

MODEL_DIRECTORY = "entropy-model"
"""Holds the n-gram model that was fitted for the run."""
SHARD_DIRECTORIES = ("entries", "summaries", "shards", "rejects")
"""Directories with one file for each shard."""
LOG = "runs"
"""Holds how long runs took: the one directory whose content no rerun repeats."""


@dataclass(frozen=True)
class PatchRun(RunRecord):
    """A planned run of ``patch_corpus.py``."""

    format_version = FORMAT_VERSION
    tells_what_to_remove = False

    files: list[InputFile]
    splits: list[Split]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    """The part of the manifest that is known beforehand."""

    def to_json(self) -> dict[str, Any]:
        numbers = {file: i for i, file in enumerate(self.files)}
        splits = [
            [numbers[s.file], s.format, s.index, s.start, s.stop, s.size] for s in self.splits
        ]
        files = [asdict(file) for file in self.files]
        return {"files": files, "splits": splits, "made_with": self.provenance}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        files = [InputFile(**file) for file in values["files"]]
        splits = [Split(files[number], *rest) for number, *rest in values["splits"]]
        return cls(files, splits, values["content"], dict(values["made_with"]))

    @classmethod
    def written(cls, values: dict[str, Any], output: OutputDirectory) -> Written:
        return Written((*SHARD_DIRECTORIES, MODEL_DIRECTORY, LOG))

    @classmethod
    def resume(cls, output: OutputDirectory, flag: str = "--output") -> Self | None:
        """See :meth:`RunRecord.resume`; shards without a record are refused, too."""
        run = super().resume(output, flag)
        with reaching(flag):
            entries = output.names("entries") if run is None else []
        if entries:
            raise ConfigError(
                f"{flag} {output.url}: holds shards but not the record of their run, "
                f"{cls.path}{ANEW}"
            )
        return run

    def check_same(
        self, settings: dict[str, Any], files: list[InputFile], output: OutputDirectory
    ) -> list[InputFile]:
        """Check that a command is the one that this run began with, on the same input.

        Returns:
            the files that this run found broken and that have changed since: it may continue with
            them.

        Raises:
            PipelineError: the command or its input differs; says in what.
        """
        where = f"--output {output.url}"
        self.check_settings(where, settings)
        mended = changed_files(where, self.files, files)
        if mended:
            broken = self.broken_files(output)
            for file in mended:
                if file.name not in broken:
                    raise changed_file_error(where, file)
        return mended

    def broken_files(self, output: OutputDirectory) -> set[str]:
        """Names of the files that could not be read to their end."""
        return {e.source for entries in self.committed(output) for e in entries if e.error}

    def with_files(
        self, files: list[InputFile], splits: list[Split], output: OutputDirectory
    ) -> "PatchRun":
        """Record this run again with ``files`` in place of their former versions, and remove what
        was committed of those."""
        new = {file.url: file for file in files}
        output.remove(MANIFEST)
        for i, file in enumerate(self.files):
            if file.url in new:
                for directory in SHARD_DIRECTORIES:
                    for name in output.names(directory):
                        if name.startswith(shard_name(i, 0, 0).partition("-")[0] + "-"):
                            output.remove(f"{directory}/{name}")
        kept = [split for split in self.splits if split.file.url not in new]
        all_files = [new.get(file.url, file) for file in self.files]
        places = {file.url: i for i, file in enumerate(all_files)}
        run = PatchRun(
            all_files,
            sorted([*kept, *splits], key=lambda split: (places[split.file.url], split.index)),
            self.settings,
            self.provenance | {"sources": source_records(all_files)},
        )
        run.begin(output)
        return run

    def committed(self, output: OutputDirectory) -> list[list[ShardEntry]]:
        """Committed entries of each split, in order."""
        numbers = {file: i for i, file in enumerate(self.files)}
        present = read_entries(output)
        committed: list[list[ShardEntry]] = []
        for split in self.splits:
            names = (shard_name(numbers[split.file], split.index, i) for i in count())
            committed.append([present[name] for name in takewhile(present.__contains__, names)])
        return committed


def source_records(files: list[InputFile]) -> list[dict[str, Any]]:
    """The input as the manifest lists it, without anything that changes when a file is copied."""
    return [{"name": file.name, "url": file.url, "bytes": file.size} for file in files]


def log_run(
    output: OutputDirectory, bytes_done: int, seconds: float, cpus: float, gpus: float
) -> None:
    """Keep how long a run took, with which devices, for what it did; one that is killed leaves
    nothing to tell."""
    ended = datetime.now(UTC).isoformat(timespec="milliseconds")
    took = {"ended": ended, "seconds": round(seconds, 3), "bytes": bytes_done}
    used = {"cpus": cpus, "gpus": gpus}
    output.write(f"{LOG}/{ended.replace(':', '')}.json", to_json(took | used))


def is_complete(entries: list[ShardEntry]) -> bool:
    """True if the entries of a split reach its end."""
    return bool(entries) and entries[-1].last
