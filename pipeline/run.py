"""The record of a run: what it reads, with what settings, so that a rerun goes on from there.

``run.json`` is written once, before any shard. It holds what the manifest will say of the run and,
besides, what tells whether the same command is being run on the same input.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.documents import Split
from pipeline.errors import PipelineError
from pipeline.shards import (
    FORMAT_VERSION,
    MANIFEST,
    ShardEntry,
    entry_path,
    read_entry,
    shard_name,
    to_json,
)
from pipeline.storage import InputFile, OutputDirectory

RECORD = "run.json"
MODEL_DIRECTORY = "entropy-model"
"""Where an n-gram model fitted for the run is kept."""
WRITTEN = ("shards", "rejects", "entries", MANIFEST, RECORD, MODEL_DIRECTORY)


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
            return None
        record = json.loads(output.read(RECORD))
        if record["format_version"] != FORMAT_VERSION:
            raise PipelineError(
                f"--output {output.url}: was begun by another release "
                f"(format {record['format_version']}); --overwrite starts anew"
            )
        files = [InputFile(**file) for file in record["files"]]
        splits = [Split(files[number], *rest) for number, *rest in record["splits"]]
        return cls(files, splits, record["content"], record["made_with"])

    def check_same(
        self, content: dict[str, Any], files: list[InputFile], output: OutputDirectory
    ) -> None:
        """
        Raises:
            PipelineError: the command or its input differs from the one that this run began with.
        """
        anew = "; --overwrite starts anew"
        where = f"--output {output.url}"
        for name, value in content.items():
            if self.content.get(name) != value:
                raise PipelineError(
                    f"{where}: was begun with {name.replace('_', '-')} "
                    f"{self.content.get(name)!r}, now it is {value!r}{anew}"
                )
        before = {file.url: file for file in self.files}
        now = {file.url: file for file in files}
        for url in sorted(before.keys() | now.keys()):
            if url not in now:
                raise PipelineError(f"{where}: input file {url} is gone since it was begun{anew}")
            if url not in before:
                raise PipelineError(f"{where}: input file {url} is new since it was begun{anew}")
            if before[url] != now[url]:
                raise PipelineError(f"{where}: input file {url} changed since it was begun{anew}")

    def committed(self, output: OutputDirectory) -> dict[int, list[ShardEntry]]:
        """Committed entries of each split (by its place in ``splits``), in order."""
        numbers = {file: i for i, file in enumerate(self.files)}
        present = set(output.names("entries"))
        found: dict[int, list[ShardEntry]] = {}
        for place, split in enumerate(self.splits):
            entries: list[ShardEntry] = []
            while True:
                name = shard_name(numbers[split.file], split.index, len(entries))
                if entry_path(name).rpartition("/")[2] not in present:
                    break
                entries.append(read_entry(output, name))
            found[place] = entries
        return found


def source_records(files: list[InputFile]) -> list[dict[str, Any]]:
    """What the manifest says of the input: nothing that changes when a file is only copied."""
    return [{"name": file.name, "url": file.url, "bytes": file.size} for file in files]


def remove_run(output: OutputDirectory) -> None:
    """Remove everything that a run writes, the record first, so that no half run looks whole."""
    for name in (MANIFEST, RECORD, *WRITTEN):
        output.remove(name)


def is_complete(entries: list[ShardEntry]) -> bool:
    """Whether the entries of a split reach its end."""
    return bool(entries) and entries[-1].last
