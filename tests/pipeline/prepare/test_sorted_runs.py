"""Sorted runs: what is written comes back, cell by cell, and the lowest keys without the rest."""

import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.prepare import sorted_runs
from pipeline.prepare.sorted_runs import (
    Grid,
    SortedRun,
    lowest_keys,
    read_cells,
    run_schema,
    sort_rows,
    without_duplicates,
    write_run,
)
from pipeline.storage.output import OutputDirectory

SCHEMA = run_schema(("url",))
LAST = 2**64 - 1
Row = tuple[int, int, bytes]
"""Key, place, text."""


@pytest.fixture(scope="module", autouse=True)
def not_to_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield


def batch(rows: list[Row]) -> pa.RecordBatch:
    keys, places, texts = ([row[i] for row in rows] for i in range(3))
    ids, urls = [f"id {place}" for place in places], [None for _ in rows]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(values, kind)
            for values, kind in zip((keys, places, texts, ids, urls), SCHEMA.types, strict=True)
        ],
        schema=SCHEMA,
    )


def write(directory: Path, name: str, grid: Grid, rows: list[Row]) -> SortedRun:
    output = OutputDirectory(str(directory))
    return write_run(output, name, grid, sort_rows([batch(rows)], SCHEMA))


def offsets_of(data: bytes, run: SortedRun) -> list[int]:
    """The places where cells of a run begin, and the end of the last, as the layout describes."""
    pairs = np.frombuffer(data[run.keys_offset + 8 * run.rows :], "<u8").reshape(-1, 2)
    return [int(offset) for offset in pairs[:, 0]]


def rows_of(batches: list[pa.RecordBatch]) -> list[Row]:
    table = pa.Table.from_batches(batches, SCHEMA)
    assert table["sample_id"].to_pylist() == [f"id {place}" for place in table["place"].to_pylist()]
    return list(zip(*(table[name].to_pylist() for name in ("key", "place", "text")), strict=True))


grids = st.builds(
    lambda bits, cells, low: Grid.over((low >> bits) << bits, bits, 1 << min(cells, bits)),
    *(st.integers(4, 64), st.integers(0, 5), st.integers(0, LAST)),
)


def keys_on(grid: Grid) -> st.SearchStrategy[int]:
    """Keys on a grid, edges of cells above all."""
    inner = st.builds(
        lambda cell, offset: grid.start(cell) + offset % (1 << grid.width_bits),
        *(st.integers(0, grid.cells - 1), st.sampled_from([0, 1, -1]) | st.integers(0, LAST)),
    )
    return inner


@settings(max_examples=60)
@given(data=st.data(), grid=grids, window=st.sampled_from([1, 2000, 1 << 25]))
def test_each_cell_holds_the_rows_with_its_keys(tmp_path_factory, data, grid, window):
    directory = tmp_path_factory.mktemp("runs")
    row = st.tuples(keys_on(grid), st.integers(0, 99), st.binary(max_size=20))
    per_run = data.draw(st.lists(st.lists(row, max_size=9), min_size=1, max_size=4))
    runs = [write(directory, f"{i}.run", grid, rows) for i, rows in enumerate(per_run)]
    assert [run.rows for run in runs] == list(map(len, per_run))
    first = data.draw(st.integers(0, grid.cells - 1))
    cells = range(first, data.draw(st.integers(first, grid.cells - 1)) + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "WINDOW_BYTES", window)
        found = list(read_cells(OutputDirectory(str(directory)), runs, cells, SCHEMA))
    assert len(found) == len(cells)
    for cell, batches in zip(cells, found, strict=True):
        keys = range(grid.start(cell), grid.start(cell) + (1 << grid.width_bits))
        expected = [
            sorted((row for row in rows if row[0] in keys), key=lambda row: row[:2])
            for rows in per_run
        ]
        flat = [row for rows in expected for row in rows]
        # Rows of the same key and place, which documents never have, may come in either order.
        assert sorted(rows_of(batches)) == sorted(flat)
        assert [row[:2] for row in rows_of(batches)] == [row[:2] for row in flat]
        assert all(grid.cell_of(row[0]) == cell for row in flat)


def test_a_run_is_an_arrow_stream_with_its_keys_behind(tmp_path):
    rows = [(LAST, 0, b"z"), (0, 1, b"a"), (1 << 63, 2, b"m"), (0, 0, b"before a")]
    run = write(tmp_path, "a.run", Grid.over(0, 64, 4), rows)
    data = (tmp_path / "a.run").read_bytes()
    keys = data[run.keys_offset : run.cells_offset]
    assert np.frombuffer(keys, "<u8").tolist() == [0, 0, 1 << 63, LAST]
    whole = rows_of(list(pa.ipc.open_stream(data[: run.keys_offset])))
    assert whole == [rows[3], rows[1], rows[2], rows[0]]


def test_a_cell_can_be_read_alone_as_the_layout_is_described(tmp_path):
    rows = [(key << 60, place, b"text" * 2000) for place, key in enumerate((5, 1, 12))]
    run = write(tmp_path, "a.run", Grid.over(0, 64, 4), rows)
    data = (tmp_path / "a.run").read_bytes()
    assert len(data) < 8000  # compressed
    schema = pa.schema(
        [
            ("key", pa.uint64()),
            ("place", pa.uint64()),
            ("text", pa.large_binary()),
            ("sample_id", pa.large_string()),
            ("url", pa.large_string()),
        ]
    )
    cells: list[list[int]] = []
    for start, stop in pairwise(offsets_of(data, run)):
        cell = pa.ipc.read_record_batch(data[start:stop], schema) if stop > start else None
        cells.append([] if cell is None else [key >> 60 for key in cell["key"].to_pylist()])
    assert cells == [[1], [5], [], [12]] and run.rows == 3
    a, b, c, d, e = offsets_of(data, run)
    assert a < b < c == d < e  # a cell without documents has no bytes
    keys = np.frombuffer(data[run.keys_offset : run.keys_offset + 8 * 3], "<u8")
    assert [int(key) >> 60 for key in keys] == [1, 5, 12]


@settings(max_examples=40)
@given(
    per_run=st.lists(
        st.lists(st.integers(0, 50) | st.just(LAST), max_size=9), min_size=1, max_size=20
    ),
    count=st.integers(0, 12),
    per_hash=st.sampled_from([1, 2, 5]),
)
@example(per_run=[[LAST, 0, 0, 0, 0, 0]], count=2, per_hash=2)
@example(per_run=[[7, *[0] * 8], [*[0] * 8, 5]], count=3, per_hash=1)
def test_the_lowest_keys_are_those_of_all_runs(tmp_path_factory, per_run, count, per_hash):
    """However many have a hash together: a run has far more keys than are read at first."""
    directory = tmp_path_factory.mktemp("keys")
    grid = Grid.over(0, 64, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "KEYS_PER_HASH", per_hash)
        patch.setattr(sorted_runs, "_KEYS_BYTES", 8 * per_hash)
        runs = [
            write(directory, f"{i}.run", grid, [(key, 0, b"") for key in keys])
            for i, keys in enumerate(per_run)
        ]
        lowest = lowest_keys(OutputDirectory(str(directory)), runs, count)
    assert lowest.tolist() == sorted({key for keys in per_run for key in keys})[:count]
    assert lowest.dtype == np.uint64


# Few keys and texts: keys collide, and texts under different keys are no duplicates.
crowded = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([b"", b"a", b"b"])), max_size=12)


@given(pairs=crowded, split=st.integers(0, 12))
def test_only_the_first_of_equal_texts_with_equal_keys_stays(pairs, split):
    rows = [(key, place, text) for place, (key, text) in enumerate(pairs)]
    parts = [batch(rows[split:]), batch(rows[:split])]  # batches come in any order
    left, dropped = without_duplicates(sort_rows(parts, SCHEMA))
    seen: set[tuple[int, bytes]] = set()
    expected = []
    for key, place, text in sorted(rows):
        if (key, text) not in seen:
            expected.append((key, place, text))
        seen.add((key, text))
    assert rows_of([left.part(0, len(left.keys_D))]) == expected
    assert left.keys_D.tolist() == [key for key, _, _ in expected]
    assert dropped.documents == len(rows) - len(expected)
    kept = sum(len(text) for _, _, text in expected)
    assert dropped.bytes == sum(len(text) for _, _, text in rows) - kept


def test_a_missing_or_damaged_run_is_an_error_of_the_storage(tmp_path):
    output, grid = OutputDirectory(str(tmp_path)), Grid.over(0, 64, 4)
    runs = [write(tmp_path, f"{i}.run", grid, [(i << 60, 0, b"text")]) for i in range(3)]
    whole = (tmp_path / "1.run").read_bytes()
    for damaged in (None, b"", whole[: offsets_of(whole, runs[1])[1] - 9], bytes(len(whole))):
        (tmp_path / "1.run").unlink(missing_ok=True)
        if damaged is not None:
            (tmp_path / "1.run").write_bytes(damaged)
        with pytest.raises(PipelineError, match=str(tmp_path)):
            list(read_cells(output, runs, range(4), SCHEMA))
        if damaged is not None:
            continue
        with pytest.raises(PipelineError, match=str(tmp_path)):
            lowest_keys(output, runs, 5)


def test_no_flipped_bit_of_a_run_is_silent(tmp_path):
    output, grid = OutputDirectory(str(tmp_path)), Grid.over(0, 64, 4)
    rows = [(i << 58, i, b"text %d" % i) for i in range(64)]
    run = write(tmp_path, "run", grid, rows)
    whole = (tmp_path / "run").read_bytes()
    offsets = offsets_of(whole, run)
    noticed = 0
    for place in range(offsets[0], len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "run").write_bytes(damaged)
        is_key = run.keys_offset <= place < run.cells_offset
        if offsets[-1] <= place < run.keys_offset:
            continue  # the mark at the stream's end, which nobody reads
        with pytest.raises(PipelineError, match=r"run: is damaged: it is not what was written"):
            if is_key:
                lowest_keys(output, [run], 5)
            else:
                list(read_cells(output, [run], range(4), SCHEMA))
        noticed += 1
    assert noticed > 100


def test_what_is_held_of_a_run_does_not_grow_with_its_cells(tmp_path):
    """The driver holds all runs: 10 TB have 150,000 merged ones of 4,096 cells."""
    rows = [(key << 52, key, b"text") for key in range(0, 4096, 3)]
    run = write(tmp_path, "run", Grid.over(0, 64, 4096), rows)
    assert len(pickle.dumps(run)) < 600
    output = OutputDirectory(str(tmp_path))
    for cells in (range(510, 515), range(4090, 4096), range(511, 512), range(512, 513)):
        found = [rows_of(batches) for batches in read_cells(output, [run], cells, SCHEMA)]
        assert [row for of_cell in found for row in of_cell] == [
            row for row in rows if row[0] >> 52 in cells
        ]
    with (tmp_path / "run").open("rb+") as file:  # a block that a disk has lost
        file.seek(run.cells_offset + 16 * 1024)
        file.write(bytes(4096))
    assert list(read_cells(output, [run], range(4), SCHEMA))
    with pytest.raises(PipelineError, match="run: is damaged"):
        list(read_cells(output, [run], range(1024, 1030), SCHEMA))


def test_the_cells_of_keys_are_those_that_hold_one_of_them():
    grid = Grid.over(64, 5, 4)  # the keys 64 to 95, 8 in a cell
    for start in range(56, 104):
        for stop in range(start + 1, 104):
            held = {grid.cell_of(key) for key in range(start, stop)} & set(range(4))
            assert set(grid.cells_of(range(start, stop))) == held
