"""For tests of the shuffle: all its steps in one process, and what they ought to give."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import xxhash

from pipeline.corpus.documents import Columns
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file
from pipeline.prepare.key_ranges import key_ranges, slices_of
from pipeline.prepare.shuffle import Shuffle, Slice, merge_runs, write_chunk
from pipeline.prepare.sort_unit import sort_unit
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.output import OutputDirectory

Texts = dict[str, list[str]]
"""By file name, the texts of its documents."""
KEYS = 1 << 64
SHUFFLE = Shuffle(
    seed=0,
    deduplicate=False,
    columns=Columns(),
    max_document_bytes=1 << 20,
    on_bad_document="reject",
    sort_bytes=1 << 20,
    cells=8,
    fine_cells=None,
)


@dataclass
class Shuffled:
    """What a shuffle gave: documents as (id, text)."""

    validation: list[tuple[str, str]]
    chunks: list[list[tuple[str, str]]]
    duplicates: DocumentStatistics

    @property
    def order(self) -> list[str]:
        """The ids of all documents."""
        return [name for part in (self.validation, *self.chunks) for name, _ in part]


def write_files(directory: Path, texts: Texts) -> Path:
    """Texts as JSONL files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, documents in texts.items():
        (directory / name).write_text("".join(map(jsonl_line, documents)))
    return directory


def jsonl_line(text: str) -> str:
    return json.dumps({"text": text}) + "\n"


def shuffle_files(
    source: Path,
    output: Path,
    *,
    chunks: int = 1,
    validation: int = 0,
    split_bytes: int = 1 << 20,
    splits_in_unit: int = 1,
    runs_in_merge: int = 256,
    **settings: object,
) -> Shuffled:
    """What ``prepare_corpus.py`` does between listing its input and the manifest."""
    shuffle, directory = replace(SHUFFLE, **settings), OutputDirectory(str(output))
    files = find_inputs([str(source)]).files
    splits = [split for file in files for split in plan_file(file, "jsonl", split_bytes).splits]
    units = [splits[i : i + splits_in_unit] for i in range(0, len(splits), splits_in_unit)]
    steps = [
        sort_unit(number, unit, shuffle, directory, output / "scratch", _ignore)
        for number, unit in enumerate(units)
    ]
    read = sum((s.documents for step in steps for s in step.sources.values()), DocumentStatistics())
    runs = [run for step in steps for run in step.runs]
    slices = [Slice(shuffle.grid, runs)]
    if shuffle.fine_cells is not None:
        groups = [runs[i : i + runs_in_merge] for i in range(0, len(runs), runs_in_merge)]
        pieces = [(group, cell) for group in groups for cell in range(shuffle.cells)]
        merges = {
            number: merge_runs(f"merged/{number}", group, cell, shuffle, directory, _ignore)
            for number, (group, cell) in enumerate(pieces)
        }
        steps += merges.values()
        slices = slices_of(merges, shuffle)
    content = {"num_chunks": chunks, "validation_documents": validation}
    content |= {"name": "corpus", "format": "parquet"}
    ranges = key_ranges(read.documents, read.bytes, slices, content, directory)
    written = {
        number: write_chunk(name, keys, slices, shuffle, "parquet", directory, _ignore)
        for number, (name, keys) in ranges.items()
    }
    duplicates = sum(
        (step.duplicates for step in [*steps, *written.values()]), DocumentStatistics()
    )
    kept = sum((chunk.documents for chunk in written.values()), DocumentStatistics())
    assert read.same_texts(kept + duplicates)
    found = {number: read_parquet(output / chunk.name) for number, chunk in written.items()}
    return Shuffled(found.pop(0, []), list(found.values()), duplicates)


def _ignore(count: int) -> None:
    pass


def read_parquet(path: Path) -> list[tuple[str, str]]:
    table = pq.read_table(path)
    return list(zip(table["sample_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def expected_shuffle(
    texts: Texts, *, seed: int, deduplicate: bool, chunks: int, validation: int
) -> tuple[list[tuple[str, str]], list[list[tuple[str, str]]]]:
    """Validation set and chunks as the rule has them, worked out the plain way."""
    documents: list[tuple[int, str, str]] = []
    seen: set[str] = set()
    for name in sorted(texts):
        offset = 0
        for text in texts[name]:
            if not (deduplicate and text in seen):
                key = key_of(name, offset, text, seed=seed, by_text=deduplicate)
                documents.append((key, f"{name}#{offset}", text))
            seen.add(text)
            offset += len(jsonl_line(text))
    documents.sort(key=lambda document: document[0])  # stable: equal keys stay as they were
    first = documents[validation][0] if validation else 0
    parts: list[list[tuple[str, str]]] = [[] for _ in range(chunks)]
    for key, *document in documents[validation:]:
        chunk = max(i for i in range(chunks) if key >= first + i * (KEYS - first) // chunks)
        parts[chunk].append(tuple(document))
    return [tuple(document) for _, *document in documents[:validation]], parts


def key_of(name: str, offset: int, text: str, *, seed: int, by_text: bool) -> int:
    """A document's key: a hash of its text, or of its position, seeded by its file's."""
    if by_text:
        return xxhash.xxh3_64_intdigest(text.encode(), seed)
    return xxhash.xxh3_64_intdigest(
        str(offset).encode(), xxhash.xxh3_64_intdigest(name.encode(), seed)
    )


def distinct(texts: Texts) -> int:
    return len({text for documents in texts.values() for text in documents})


def count(texts: Texts) -> int:
    return sum(map(len, texts.values()))


def ids_of(texts: Texts) -> list[str]:
    """Ids of all documents, in the order of the corpus."""
    ids = []
    for name in sorted(texts):
        offset = 0
        for text in texts[name]:
            ids.append(f"{name}#{offset}")
            offset += len(jsonl_line(text))
    return ids


def all_texts(parts: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    return sorted(text for part in parts for _, text in part)
