"""Units of work: their sizes follow the corpus, small files share them, large ones are cut."""

import pytest

from pipeline.corpus.splits import (
    FILE_BYTES,
    MOST_ALONE,
    SPLITS,
    FilePlan,
    Split,
    plan_file,
    share,
    size_of_splits,
    units_of,
)
from pipeline.storage.listing import InputFile

KB, MB = 1 << 10, 1 << 20


def plan(name: str, *sizes: int) -> FilePlan:
    file = InputFile(name, name, sum(sizes), "1")
    splits = [Split(file, "jsonl", i, 0, None, size) for i, size in enumerate(sizes)]
    return FilePlan(splits, None)


def names(units):
    return [[f"{split.file.name}{split.index}" for split in unit] for unit in units]


@pytest.mark.parametrize(
    ("text", "files", "expected"),
    [
        (8 * MB, 1, 128 * KB),  # the least that is worth a split
        (512 * MB, 1, 512 * KB),
        (10_000 * MB, 1, 10_000 * KB),
        (1 << 40, 1000, 64 * MB),  # what was asked for, at most
        (10 * MB, 200_000, (10 * MB + 200_000 * FILE_BYTES) // SPLITS),
    ],
)
def test_splits_follow_the_size_of_the_corpus(text, files, expected):
    size = size_of_splits(text, files, 128 * KB, 64 * MB)
    assert size == pytest.approx(expected, rel=0.01)
    assert size_of_splits(text, files, 128 * KB, 1000) == 1000


def test_one_file_of_8_mb_keeps_many_workers_busy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "%s"}\n' % (b"x" * 1000) * 8000)
    file = InputFile(str(path), "a.jsonl", path.stat().st_size, "1")
    size = size_of_splits(file.size, 1, 128 * KB, 64 * MB)
    units = units_of([plan_file(file, "jsonl", size)], size)
    assert len(units) == 62 and all(len(unit) == 1 for unit in units)
    assert sum(split.size for (split,) in units) == file.size


def test_small_files_share_units_in_their_order():
    room = 10 * KB + 2 * FILE_BYTES
    plans = [plan("a", 3 * KB), plan("b", 4 * KB), plan("c", 10 * KB, 10 * KB), plan("d", 2 * KB)]
    plans += [plan("e", 8 * KB), plan("f", 1), plan("g", 99 * KB), plan("h", 1), plan("i", 1)]
    expected = [["a0", "b0"], ["c0"], ["c1"], ["d0", "e0"], ["f0"], ["g0"], ["h0", "i0"]]
    assert names(share(plans, room)) == expected
    assert share([], room) == []


def test_files_are_told_apart_where_they_are_few():
    plans = [plan(f"{i:03}", 10) for i in range(MOST_ALONE + 1)]
    assert len(units_of(plans[:-1], MB)) == MOST_ALONE
    (unit,) = units_of(plans, MB)
    assert [split.file.name for split in unit] == [p.splits[0].file.name for p in plans]


def test_two_hundred_thousand_files_give_about_a_thousand_units():
    file = InputFile("a", "a", 50, "1")
    plans = [FilePlan([Split(file, "jsonl", 0, i, None, 50)], None) for i in range(200_000)]
    size = size_of_splits(50 * len(plans), len(plans), 128 * KB, 64 * MB)
    units = units_of(plans, size)
    assert SPLITS <= len(units) < 1.01 * SPLITS
    assert [split.start for unit in units for split in unit] == list(range(200_000))
