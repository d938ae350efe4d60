"""The source of a shard: its file or, where files share it, the directory that they are below."""

from dataclasses import replace

import pytest

from pipeline.shards.entries import ShardEntry, shard_name
from pipeline.shards.sources import source_names

FILES = ["a/1", "a/10", "a/2", "a/b/1", "c", "d/1", "d/2"]


def shard(first: int, split: int, piece: int, source: str):
    return ShardEntry(shard_name(first, split, piece), source).row()


@pytest.mark.parametrize(
    "shards, sources",
    [
        # Files with shards of their own, one of them cut in two, and one in two shards.
        (
            [(0, 0, 0, "a/1"), (1, 0, 0, "a/10"), (1, 1, 0, "a/10"), (1, 1, 1, "a/10")],
            ["a/1", "a/10", "a/10", "a/10"],
        ),
        ([(0, 0, 0, "a/2"), (3, 0, 0, "a/b/1"), (4, 0, 0, "d/2")], ["a/*", "a/b/1", "*"]),
        ([(0, 0, 0, "a/b/1"), (4, 0, 0, "c"), (5, 0, 0, "d/2")], ["a/*", "c", "d/*"]),
        # Several shards of a unit: each begins with the file that the one before ended with, as far
        # as anybody can tell.
        ([(0, 0, 0, "a/2"), (0, 0, 1, "a/2"), (0, 0, 2, "c")], ["a/*", "a/2", "*"]),
        # The manifest of another program names no files, or others.
        ([(0, 0, 0, "x"), (1, 0, 0, "y")], ["x", "y"]),
    ],
)
def test_sources_of_shards(shards, sources):
    entries = [shard(*values) for values in shards]
    assert source_names(entries, FILES) == sources


def test_names_that_begin_alike_are_no_directory():
    entries = [shard(0, 0, 0, "ab2")]
    assert source_names(entries, ["ab1", "ab2"]) == ["*"]
    assert source_names([replace(entries[0], source="x/ab1/z")], ["x/ab1/y", "x/ab1/z"]) == [
        "x/ab1/*"
    ]
