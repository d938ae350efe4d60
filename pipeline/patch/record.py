"""The record of a patching run: its files, its units of work, and what its manifest will say.

Workers commit an entry for each shard; the entries and this record together tell what is left. A
run keeps the units that it was begun with, whatever a later release would make of its input.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import count, islice, takewhile
from typing import Any, Self, TypeVar

from pipeline.corpus.splits import FilePlan, Split, Unit, share
from pipeline.errors import ConfigError
from pipeline.shards.entries import Shard, entry_path, shard_name
from pipeline.shards.provenance import FITTED_MODEL
from pipeline.shards.shard_set import TOKENIZER_DIRECTORY
from pipeline.shards.tables import BATCHES_FILE, ENTRIES_FILE
from pipeline.storage.checked_json import to_json
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import (
    ANEW,
    MANIFEST,
    RunRecord,
    Written,
    changed_file_error,
    changed_files,
    reaching,
)

MODEL_DIRECTORY = FITTED_MODEL
"""Holds the n-gram model that was fitted for the run."""
SHARD_DIRECTORIES = ("entries", "summaries", "shards", "rejects")
"""Directories with one file for each shard."""
LOG = "runs"
"""Holds how long runs took: the one directory whose content no rerun repeats."""
PARTS_OF_DEADLY = 16
"""Units that a unit is cut into, at most, if one of its files ends those who read it."""

T = TypeVar("T")


@dataclass(frozen=True)
class PatchRun(RunRecord):
    """A planned run of ``patch_corpus.py``."""

    format_version = 3
    older_versions = (1, 2)
    """In which each split is a unit of its own."""
    tells_what_to_remove = False

    files: list[InputFile]
    units: list[Unit]
    """In the order of the files."""
    settings: dict[str, Any]
    provenance: dict[str, Any]
    """The part of the manifest that is known beforehand."""
    split_bytes: int | None = None
    """Bytes of text per split that the input was cut by; None in older records."""

    def to_json(self) -> dict[str, Any]:
        numbers = {file: i for i, file in enumerate(self.files)}
        splits = [
            [numbers[s.file], s.format, s.index, s.start, s.stop, s.size]
            for unit in self.units
            for s in unit
        ]
        return {
            "files": [asdict(file) for file in self.files],
            "splits": splits,
            "plan": {
                "split_bytes": self.split_bytes,
                "splits_per_unit": [len(unit) for unit in self.units],
            },
            "made_with": self.provenance,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        files = [InputFile(**file) for file in values["files"]]
        splits = [Split(files[number], *rest) for number, *rest in values["splits"]]
        plan: dict[str, Any] = {"splits_per_unit": [1] * len(splits), "split_bytes": None}
        if values["format_version"] not in cls.older_versions:
            plan = values["plan"]
        counts = plan["splits_per_unit"]
        if sum(counts) != len(splits) or min(counts, default=1) < 1:
            raise ValueError(f"splits_per_unit: are not those of {len(splits)} splits")
        left = iter(splits)
        return cls(
            files,
            [tuple(islice(left, count)) for count in counts],
            values["content"],
            dict(values["made_with"]),
            plan["split_bytes"],
        )

    @classmethod
    def written(cls, values: dict[str, Any], output: OutputDirectory) -> Written:
        directories = (*SHARD_DIRECTORIES, MODEL_DIRECTORY, TOKENIZER_DIRECTORY, LOG)
        return Written(directories, (ENTRIES_FILE, BATCHES_FILE))

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

    def changed_files(
        self, settings: dict[str, Any], files: list[InputFile], output: OutputDirectory
    ) -> list[InputFile]:
        """The files that have changed since this run began. It may continue with those that it
        found broken, see :meth:`check_broken`.

        Raises:
            PipelineError: the settings differ, or a file is new or gone; says in what.
        """
        where = f"--output {output.url}"
        self.check_settings(where, settings)
        return changed_files(where, self.files, files)

    @staticmethod
    def check_broken(
        files: Sequence[InputFile], broken: Collection[str], output: OutputDirectory
    ) -> None:
        """
        Args:
            files: those that have changed.
            broken: names of the files that could not be read to their end.

        Raises:
            PipelineError: a file has changed that was not broken.
        """
        for file in files:
            if file.name not in broken:
                raise changed_file_error(f"--output {output.url}", file)

    def with_files(
        self, files: list[InputFile], plans: Sequence[FilePlan], output: OutputDirectory
    ) -> "PatchRun":
        """Record this run again with ``files`` in place of their former versions, and remove what
        was committed of the units that these are in.

        Args:
            plans: how each of the files is read.
        """
        plan_of = {file.url: plan for file, plan in zip(files, plans, strict=True)}
        planned: set[str] = set()
        removed: list[Unit] = []
        units: list[Unit] = []
        for unit in self.units:
            if not any(split.file.url in plan_of for split in unit):
                units.append(unit)
                continue
            removed.append(unit)
            anew: list[FilePlan] = []
            for split in unit:
                plan = plan_of.get(split.file.url, FilePlan([split], None))
                if split.file.url not in planned:  # as the splits after a file's first one are
                    anew.append(plan)
                planned.add(split.file.url)
            units += share(anew, self.split_bytes or 0)
        new = {file.url: file for file in files}
        all_files = [new.get(file.url, file) for file in self.files]
        return self._recorded_with(all_files, units, removed, output)

    def with_smaller_units(self, numbers: Collection[int], output: OutputDirectory) -> "PatchRun":
        """Record this run again with some units cut into smaller ones, because one of the files in
        each ends those who read it, and remove what was committed of these units."""
        units: list[Unit] = []
        for number, unit in enumerate(self.units):
            size = -(-len(unit) // PARTS_OF_DEADLY) if number in numbers else len(unit)
            units += [unit[start : start + size] for start in range(0, len(unit), size)]
        removed = [self.units[number] for number in numbers]
        return self._recorded_with(self.files, units, removed, output)

    def _recorded_with(
        self,
        files: list[InputFile],
        units: list[Unit],
        removed: Sequence[Unit],
        output: OutputDirectory,
    ) -> "PatchRun":
        numbers = {file: i for i, file in enumerate(self.files)}
        prefixes = {_prefix(unit, numbers) for unit in removed}
        output.remove(MANIFEST)
        for directory in SHARD_DIRECTORIES:
            for name in output.names(directory):
                if name.rpartition("-")[0] in prefixes:
                    output.remove(f"{directory}/{name}")
        sources = {"sources": source_records(files)}
        run = replace(self, files=files, units=units, provenance=self.provenance | sources)
        run.begin(output)
        return run

    def committed(self, present: Mapping[str, T]) -> list[list[T]]:
        """The committed shards of each unit, as far as they are known, up to the first one that
        is not there.

        Args:
            present: by name of a shard.
        """
        numbers = {file: i for i, file in enumerate(self.files)}
        committed: list[list[T]] = []
        for unit in self.units:
            first = unit[0]
            names = (shard_name(numbers[first.file], first.index, i) for i in count())
            committed.append([present[name] for name in takewhile(present.__contains__, names)])
        return committed

    def discard_lost(
        self, present: dict[str, Shard], output: OutputDirectory, damaged: Mapping[str, str]
    ) -> list[str]:
        """Remove from ``present``, and from the output, the entries of shards whose files are not
        what was written: gone, of another size, or known to be damaged. Those that follow in the
        same unit are made anew with them. Lists the files, and reads none.

        Args:
            damaged: how shards are damaged, by name, as far as somebody has looked.

        Returns:
            a message for each lost shard.
        """
        sizes = output.sizes("shards")
        beside = {name: set(output.names(name)) for name in ("summaries", "rejects")}
        messages = []
        for shards in self.committed(present):
            problems = (
                _problem(shard, sizes, beside) or damaged.get(shard.name) for shard in shards
            )
            lost = next(((i, what) for i, what in enumerate(problems) if what), None)
            if lost is None:
                continue
            first, what = lost
            messages.append(f"{output.locate(shards[first].path)}: {what}: making it again")
            output.remove(MANIFEST)
            for shard in reversed(shards[first:]):
                output.remove(entry_path(shard.name))
                del present[shard.name]
        return messages


def _prefix(unit: Unit, numbers: Mapping[InputFile, int]) -> str:
    """What the names of a unit's shards begin with."""
    return shard_name(numbers[unit[0].file], unit[0].index, 0).rpartition("-")[0]


def _problem(
    shard: Shard, sizes: Mapping[str, int], beside: Mapping[str, Collection[str]]
) -> str | None:
    """The problems of a shard's files, given the sizes of all shards, and the names of what lies
    beside them."""
    size = sizes.get(f"{shard.name}.arrow")
    if shard.sha256 is not None and size is None:
        return "is missing"
    if shard.shard_bytes and size != shard.shard_bytes:
        return f"has {size:,} bytes, {shard.shard_bytes:,} were written"
    # Some early releases of format version 1 wrote no summaries at all.
    summarized = shard.batches is not None or beside["summaries"]
    if summarized and f"{shard.name}.json" not in beside["summaries"]:
        return f"its {shard.summary_path} is missing"
    if (shard.rejects or shard.error) and f"{shard.name}.jsonl" not in beside["rejects"]:
        return f"its {shard.rejects_path} is missing"
    return None


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


def is_complete(entries: Sequence[Shard]) -> bool:
    """True if the entries of a unit reach its end."""
    return bool(entries) and entries[-1].last
