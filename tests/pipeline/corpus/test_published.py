"""Shards of the published preprocessing as input: whole ones, in their order."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.corpus.inputs import find_inputs
from pipeline.errors import ConfigError


@pytest.fixture
def shards(tmp_path) -> Path:
    """Twelve shards of a chunk, one of which has no mark."""
    directory = tmp_path / "web" / "model"
    directory.mkdir(parents=True)
    table = pa.table({"text": ["a"]})
    for number in range(12):
        path = directory / f"web.chunk.00.jsonl.shard_{number}.arrow"
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
        if number != 7:
            path.with_name(f"{path.name}.complete").touch()
    return directory


@pytest.mark.parametrize("pattern", ["{}", "{}/*.arrow", "{}/../"])
def test_unfinished_shards_are_named(shards, pattern):
    inputs = find_inputs([pattern.format(shards)])
    numbers = [int(file.name.rpartition("_")[2].partition(".")[0]) for file in inputs.files]
    assert numbers == [n for n in range(12) if n != 7]
    ((path, reason),) = inputs.unread.items()
    assert path.endswith("/web.chunk.00.jsonl.shard_7.arrow")
    assert reason == "unfinished: it has no .complete mark beside it"


def test_an_unfinished_shard_that_is_named_is_refused(shards):
    path = shards / "web.chunk.00.jsonl.shard_7.arrow"
    with pytest.raises(ConfigError, match=r"shard_7\.arrow: unfinished: .* or make the mark web\."):
        find_inputs([str(path)])
    path.with_name(f"{path.name}.complete").touch()
    assert len(find_inputs([str(path)]).files) == 1 and not find_inputs([str(path)]).unread
    assert len(find_inputs([str(shards)]).files) == 12


def test_only_unfinished_shards(shards):
    for mark in shards.glob("*.complete"):
        mark.unlink()
    with pytest.raises(ConfigError, match=r"not read: .*unfinished: it has no \.complete mark"):
        find_inputs([str(shards)])
