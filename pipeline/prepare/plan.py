"""The record of a preparation: what it reads, in which units, and how it is shuffled.

Workers commit an entry below ``exchange/`` for each piece of work that is done; the job removes
``exchange/`` when all is done.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pipeline.corpus.documents import Columns
from pipeline.corpus.prepared import EXCHANGE, FORMAT_VERSION
from pipeline.corpus.splits import Split
from pipeline.errors import PipelineError
from pipeline.prepare.config import PrepareCorpusConfig
from pipeline.prepare.shuffle import Chunk, Shuffle, Sorted, Source
from pipeline.prepare.sorted_runs import SortedRun
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.checked_json import to_checked_json
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import ANEW, PREPARE, RunRecord, Written

CHUNK_BYTES = 256 * 10**6
"""Bytes of text per chunk, by default."""
MOST_SPLITS = 256
"""Splits per unit, at most: small files share one."""
LEAST_CELLS, MOST_CELLS = 64, 2048
CELLS_PER_CHUNK = 16
"""A chunk may begin and end inside a cell: with so many cells it reads little that is not its own,
and a worker, which holds the texts of one cell at a time, needs little memory. Where chunks are to
be larger than CHUNK_BYTES, each CHUNK_BYTES of text have so many: of 5 TB in 32 chunks a cell would
otherwise be of 10 GB."""
MANY_CHUNKS = 128
"""With more chunks than this, or as much text as they have by default, runs are merged first: see
:mod:`pipeline.prepare.shuffle`."""
MERGED_CELLS = 256
"""Cells of runs that are merged; also how many runs are merged into one."""


@dataclass(frozen=True)
class Preparation(RunRecord):
    """A planned run of ``prepare_corpus.py``."""

    stage = PREPARE
    format_version = FORMAT_VERSION

    files: list[InputFile]
    units: list[list[Split]]
    settings: dict[str, Any]
    shuffle: Shuffle

    def to_json(self) -> dict[str, Any]:
        numbers = {file: i for i, file in enumerate(self.files)}
        units = [
            [[numbers[s.file], s.format, s.index, s.start, s.stop, s.size] for s in splits]
            for splits in self.units
        ]
        files = [asdict(file) for file in self.files]
        return {"files": files, "units": units, "shuffle": asdict(self.shuffle)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        files = [InputFile(**file) for file in values["files"]]
        units = [
            [Split(files[number], *rest) for number, *rest in splits] for splits in values["units"]
        ]
        columns = values["shuffle"]["columns"]
        columns = Columns(columns["text"], columns["id"], tuple(columns["metadata"]))
        shuffle = Shuffle(**values["shuffle"] | {"columns": columns})
        return cls(files, units, values["content"], shuffle)

    def continued(self, config: PrepareCorpusConfig) -> Self:
        """The same preparation, with what a rerun may ask for anew, because no chunk depends on
        it: how much a worker holds, and whether a broken document stops the job."""
        shuffle = replace(
            self.shuffle, sort_bytes=config.sort_bytes, on_bad_document=config.on_bad_document
        )
        return replace(self, shuffle=shuffle)

    @classmethod
    def written(cls, values: dict[str, Any], output: OutputDirectory) -> Written:
        chunks = []
        if values:
            name = values["content"]["name"]
            starts = (f"{name}.chunk.", f"{name}.val.")
            chunks = [file for file in output.names() if file.startswith(starts)]
        return Written((EXCHANGE, "rejects", "tokenizer"), chunks)


@dataclass(frozen=True)
class Downloads(RunRecord):
    """The files to download, and keep, before a preparation can be planned."""

    path = f"{EXCHANGE}/files.json"

    files: list[InputFile]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"files": [asdict(file) for file in self.files]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls([InputFile(**file) for file in values["files"]], values["content"])

    @classmethod
    def written(cls, values: dict[str, Any], output: OutputDirectory) -> Written:
        return Written((EXCHANGE,))


def plan(
    files: list[InputFile], splits: Sequence[Split], columns: Columns, config: PrepareCorpusConfig
) -> Preparation:
    """Cut the work into units and cells; input and settings alone decide how."""
    chunks = max(config.num_chunks or 1, -(-sum(s.size for s in splits) // CHUNK_BYTES))
    cells, fine_cells = min(power_of_two(CELLS_PER_CHUNK * chunks), MOST_CELLS), None
    if chunks > MANY_CHUNKS:
        cells = MERGED_CELLS
        fine_cells = power_of_two(CELLS_PER_CHUNK * chunks // cells)
    shuffle = Shuffle(
        seed=config.seed,
        deduplicate=config.deduplicate,
        columns=columns,
        max_document_bytes=config.max_document_bytes,
        on_bad_document=config.on_bad_document,
        sort_bytes=config.sort_bytes,
        cells=max(cells, LEAST_CELLS),
        fine_cells=fine_cells,
    )
    return Preparation(files, _units(splits, config.sort_bytes), config.content(), shuffle)


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least ``least``, which is positive."""
    return 1 << (least - 1).bit_length()


def _units(splits: Sequence[Split], limit: int) -> list[list[Split]]:
    """Neighbouring splits: at most MOST_SPLITS, and about ``limit`` bytes of text, per unit."""
    units: list[list[Split]] = []
    size = 0
    for split in splits:
        if not units or size + split.size > limit or len(units[-1]) == MOST_SPLITS:
            units.append([])
            size = 0
        units[-1].append(split)
        size += split.size
    return units


def units_done(output: OutputDirectory) -> dict[int, Sorted]:
    """The results of units that are sorted, by number."""
    return {n: _sorted(entry, output) for n, entry in _entries(output, "units").items()}


def merges_done(output: OutputDirectory) -> dict[int, Sorted]:
    """The results of merges that are done, by number."""
    return {n: _sorted(entry, output) for n, entry in _entries(output, "merges").items()}


def chunks_done(output: OutputDirectory) -> dict[int, Chunk]:
    """The chunks that are written, by number; 0 is the validation set."""
    return {number: read_chunk(entry) for number, entry in _entries(output, "chunks").items()}


def commit_piece(output: OutputDirectory, kind: str, number: int, done: Sorted | Chunk) -> None:
    """Record that a piece of work is done; ``kind`` is units, merges or chunks."""
    output.write(f"{EXCHANGE}/{kind}/{number:06d}.json", to_checked_json(plain_values(done)))


def _entries(output: OutputDirectory, kind: str) -> dict[int, Any]:
    entries = output.read_all_json(f"{EXCHANGE}/{kind}")
    return {int(name.removesuffix(".json")): entry for name, entry in entries.items()}


def plain_values(value: Any) -> Any:
    """The result of a piece of work as plain values."""
    if isinstance(value, DocumentStatistics):
        return value.to_json()
    if isinstance(value, dict):
        return {name: plain_values(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain_values(item) for item in value]
    return plain_values(vars(value)) if hasattr(value, "__dict__") else value


def read_chunk(entry: dict[str, Any]) -> Chunk:
    """The chunk that :func:`plain_values` made an entry of."""
    statistics = ("documents", "duplicates")
    return Chunk(**entry | {name: _statistics(entry[name]) for name in statistics})


def _sorted(entry: dict[str, Any], output: OutputDirectory) -> Sorted:
    sources = {
        name: Source(**source | {"documents": _statistics(source["documents"])})
        for name, source in entry["sources"].items()
    }
    try:
        runs = [SortedRun(**run) for run in entry["runs"]]
    except TypeError as error:
        raise PipelineError(
            f"--output {output.url}: was begun by another release, whose {EXCHANGE}/ is of another "
            f"form ({error}){ANEW}"
        ) from error
    return Sorted(runs, _statistics(entry["duplicates"]), sources)


def _statistics(values: dict[str, Any]) -> DocumentStatistics:
    return DocumentStatistics.from_json(values)


def remove_entries(output: OutputDirectory) -> None:
    """Remove the entries of all pieces of work, so that they are done again."""
    for kind in ("units", "merges", "chunks"):
        output.remove(f"{EXCHANGE}/{kind}")
