"""The record of a run: what it reads, with what settings, so that a rerun goes on from there.

``run.json`` is written once, before any shard. It holds what the manifest will say of the run and,
besides, what tells whether the same command is being run on the same input.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count, takewhile
from typing import Any

from pipeline.corpus.documents import Split
from pipeline.errors import PipelineError
from pipeline.shards.entries import ShardEntry, read_entries, shard_name
from pipeline.shards.manifest import FORMAT_VERSION, MANIFEST
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory, to_json
from pipeline.storage.run_record import changed, changed_files, check_command

RECORD = "run.json"
MODEL_DIRECTORY = "entropy-model"
"""Where an n-gram model fitted for the run is kept."""
OF_SHARDS = ("entries", "summaries", "shards", "rejects")
"""Directories with a file for each shard."""
LOG = "runs"
"""How long runs took: the one directory whose content no rerun repeats."""
WRITTEN = (*OF_SHARDS, MANIFEST, RECORD, MODEL_DIRECTORY, LOG)


@dataclass(frozen=True)
class Run:
    """A planned run."""

    files: list[InputFile]
    splits: list[Split]
    content: dict[str, Any]
    """The settings that decide what is in the shards."""
    made_with: dict[str, Any]
    """The part of the manifest that is known beforehand."""

    def save(self, output: OutputDirectory) -> None:
        numbers = {file: i for i, file in enumerate(self.files)}
        splits = [
            [numbers[s.file], s.format, s.index, s.start, s.stop, s.size] for s in self.splits
        ]
        record = {
            "format_version": FORMAT_VERSION,
            "files": [asdict(file) for file in self.files],
            "splits": splits,
            "content": self.content,
            "made_with": self.made_with,
        }
        output.write(RECORD, to_json(record))

    @classmethod
    def load(cls, output: OutputDirectory) -> "Run | None":
        """The run that the output belongs to, if it belongs to one."""
        if not output.exists(RECORD):
            if output.names("entries"):
                raise PipelineError(
                    f"{output.url}: holds shards but not the record of their run, "
                    f"{RECORD}; --overwrite starts anew"
                )
            return None
        record = output.read_json(RECORD)
        if "stage" in record:
            raise PipelineError(f"{output.url}: holds a prepared corpus; choose another directory")
        if record["format_version"] != FORMAT_VERSION:
            raise PipelineError(
                f"{output.url}: was begun by another release "
                f"(format {record['format_version']}); --overwrite starts anew"
            )
        files = [InputFile(**file) for file in record["files"]]
        splits = [Split(files[number], *rest) for number, *rest in record["splits"]]
        return cls(files, splits, record["content"], record["made_with"])

    def check_same(
        self, content: dict[str, Any], files: list[InputFile], output: OutputDirectory
    ) -> list[InputFile]:
        """Check that a command is the one that this run began with, on the same input.

        Returns:
            files that this run found broken and that have changed since; with these it may go on.

        Raises:
            PipelineError: the command or its input differs; says in what.
        """
        where = f"--output {output.url}"
        check_command(where, self.content, content)
        mended = changed_files(where, self.files, files)
        if mended:
            broken = {e.source for entries in self.committed(output) for e in entries if e.error}
            for file in mended:
                if file.name not in broken:
                    raise changed(where, file)
        return mended

    def with_files(
        self, files: list[InputFile], splits: list[Split], output: OutputDirectory
    ) -> "Run":
        """This run, recorded with ``files`` in place of their former versions, of which nothing
        stays committed."""
        new = {file.url: file for file in files}
        output.remove(MANIFEST)
        for i, file in enumerate(self.files):
            if file.url in new:
                for directory in OF_SHARDS:
                    for name in output.names(directory):
                        if name.startswith(shard_name(i, 0, 0).partition("-")[0] + "-"):
                            output.remove(f"{directory}/{name}")
        kept = [split for split in self.splits if split.file.url not in new]
        all_files = [new.get(file.url, file) for file in self.files]
        places = {file.url: i for i, file in enumerate(all_files)}
        run = Run(
            all_files,
            sorted([*kept, *splits], key=lambda split: (places[split.file.url], split.index)),
            self.content,
            self.made_with | {"sources": source_records(all_files)},
        )
        run.save(output)
        return run

    def committed(self, output: OutputDirectory) -> list[list[ShardEntry]]:
        """Committed entries of each split, in order."""
        numbers = {file: i for i, file in enumerate(self.files)}
        present = read_entries(output)
        found: list[list[ShardEntry]] = []
        for split in self.splits:
            names = (shard_name(numbers[split.file], split.index, i) for i in count())
            found.append([present[name] for name in takewhile(present.__contains__, names)])
        return found


def source_records(files: list[InputFile]) -> list[dict[str, Any]]:
    """What the manifest says of the input: nothing that changes when a file is only copied."""
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


def remove_run(output: OutputDirectory) -> None:
    """Remove everything that a run writes, the record first, so that no half run looks whole."""
    for name in (MANIFEST, RECORD, *WRITTEN):
        output.remove(name)


def is_complete(entries: list[ShardEntry]) -> bool:
    """Whether the entries of a split reach its end."""
    return bool(entries) and entries[-1].last
