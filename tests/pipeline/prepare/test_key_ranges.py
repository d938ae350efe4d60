"""Which keys chunks and the validation set hold, and which runs are merged."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.prepare import key_ranges as ranges
from pipeline.prepare.key_ranges import Range, key_ranges, merge_groups, slices_of
from pipeline.prepare.shuffle import Shuffle, Slice, Sorted
from pipeline.prepare.sorted_runs import Grid, SortedRun, run_schema, sort_rows, write_run
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.output import OutputDirectory

KEYS = 1 << 64


def slices(directory: Path, keys: list[int], cells: int = 2) -> list[Slice]:
    """Slices whose runs together hold some keys."""
    output, schema = OutputDirectory(str(directory)), run_schema(())
    found = []
    whole = Grid.over(0, 64, cells)
    for cell in range(cells):
        grid = Grid.over(whole.start(cell), whole.width_bits, 4)
        mine = [key for key in keys if whole.cell_of(key) == cell]
        runs = []
        for i in range(2):
            part = mine[i::2]
            columns = [part, range(len(part)), [b""] * len(part), [""] * len(part)]
            arrays = [pa.array(c, kind) for c, kind in zip(columns, schema.types, strict=True)]
            batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
            name = f"{cell}-{i}.run"
            runs.append(write_run(output, name, grid, sort_rows([batch], schema)))
        found.append(Slice(grid, runs))
    return found


def ranges_of(
    directory: Path,
    keys: list[int],
    *,
    documents: int | None = None,
    text_bytes: int = 1000,
    **content: object,
) -> dict[int, Range]:
    wanted = {"name": "c", "format": "parquet", "num_chunks": 3, "validation_documents": 0}
    output = OutputDirectory(str(directory))
    count = len(keys) if documents is None else documents
    return key_ranges(count, text_bytes, slices(directory, keys), wanted | content, output)


def random_keys(count: int) -> list[int]:
    keys = np.random.default_rng(0).integers(0, KEYS, count, np.uint64, endpoint=False)
    return keys.tolist()


@pytest.fixture(autouse=True)
def not_to_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.mark.parametrize("validation", [0, 1, 29, 59])
@pytest.mark.parametrize("chunks", [1, 3, 150])
def test_every_key_is_in_one_range_and_chunks_are_equally_wide(tmp_path, validation, chunks):
    keys = random_keys(60)
    found = ranges_of(tmp_path, keys, num_chunks=chunks, validation_documents=validation)
    assert list(found) == list(range(0 if validation else 1, chunks + 1))
    edges = [edge for part in found.values() for edge in (part.keys.start, part.keys.stop)]
    assert edges[0] == 0 and edges[-1] == KEYS and edges[1:-1:2] == edges[2:-1:2]
    widths = {part.keys.stop - part.keys.start for number, part in found.items() if number}
    assert max(widths) - min(widths) <= 1
    if validation:
        assert [key for key in sorted(keys) if key in found[0].keys] == sorted(keys)[:validation]


def test_names_have_as_many_digits_as_they_need(tmp_path):
    keys = random_keys(9)
    few = ranges_of(tmp_path, keys, num_chunks=3, validation_documents=1, format="jsonl")
    assert [part.name for part in few.values()] == [
        *("c.val.jsonl", "c.chunk.00.jsonl", "c.chunk.01.jsonl", "c.chunk.02.jsonl"),
    ]
    for chunks, last in ((100, "c.chunk.99.parquet"), (101, "c.chunk.100.parquet")):
        names = [part.name for part in ranges_of(tmp_path, keys, num_chunks=chunks).values()]
        assert names[-1] == last and names == sorted(names)


def test_the_last_document_cannot_be_taken_for_validation(tmp_path):
    keys = random_keys(6)
    assert (
        len([k for k in keys if k in ranges_of(tmp_path, keys, validation_documents=5)[0].keys])
        == 5
    )
    for asked in (6, 7, 10**9):
        with pytest.raises(
            PipelineError, match=f"--validation-documents: {asked} would leave none"
        ):
            ranges_of(tmp_path, keys, validation_documents=asked)


def held_out(directory: Path, keys: list[int], **more: object) -> int:
    found = ranges_of(directory, keys, validation_documents=None, **more)
    assert min(part.keys.start for part in found.values()) == 0
    held = sum(key in found[0].keys for key in keys) if 0 in found else 0
    assert (held > 0) == (0 in found)
    return held


def test_a_tenth_of_a_small_corpus_is_held_out_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "VALIDATION_DOCUMENTS", 12)
    assert held_out(tmp_path, random_keys(9)) == 0
    assert held_out(tmp_path, random_keys(10)) == 1
    assert held_out(tmp_path, random_keys(23)) == 2
    assert held_out(tmp_path, random_keys(24)) == 12
    assert held_out(tmp_path, random_keys(200)) == 12
    # Duplicates do not count: most of what is left would be held out, or none of it.
    assert held_out(tmp_path, random_keys(13), documents=1000) == 1
    assert held_out(tmp_path, random_keys(23) * 9) == 2 * 9
    assert held_out(tmp_path, random_keys(5), documents=1000) == 0


def test_chunks_are_as_large_as_said_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 100)
    keys = random_keys(10)
    for text_bytes, chunks in ((0, 1), (1, 1), (100, 1), (101, 2), (1000, 10)):
        found = ranges_of(tmp_path, keys, num_chunks=None, text_bytes=text_bytes)
        assert len(found) == chunks
    # Half of the text is held out.
    found = ranges_of(tmp_path, keys, num_chunks=None, validation_documents=5)
    assert len(found) == 1 + 5


def test_no_documents_are_an_error(tmp_path):
    with pytest.raises(PipelineError, match=r"holds no document; see rejects/"):
        ranges_of(tmp_path, [])


@given(runs=st.integers(1, 600), cells=st.sampled_from([1, 4, 256]))
def test_merges_are_put_together_as_they_were_taken_apart(runs, cells):
    """With more runs than are merged at once, too."""
    shuffle = Shuffle.__new__(Shuffle)
    object.__setattr__(shuffle, "cells", cells)
    object.__setattr__(shuffle, "fine_cells", 2)
    groups = merge_groups([SortedRun(str(i), 0, 0, 0, "", "") for i in range(runs)])
    assert [int(run.name) for group in groups for run in group] == list(range(runs))
    assert max(map(len, groups)) <= 256
    pieces = [(group, cell) for group in range(len(groups)) for cell in range(cells)]
    merges = {
        number: Sorted([SortedRun(f"{group} {cell}", 0, 0, 0, "", "")], DocumentStatistics())
        for number, (group, cell) in enumerate(pieces)
    }
    found = slices_of(dict(reversed(merges.items())), shuffle)
    for cell, part in enumerate(found):
        assert [run.name for run in part.runs] == [
            f"{group} {cell}" for group in range(len(groups))
        ]
        assert part.grid.low == cell * KEYS // cells
        assert part.grid.cells << part.grid.width_bits == KEYS // cells
