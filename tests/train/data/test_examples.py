"""The worked examples of the docstrings in ``train/data``."""

import doctest
import itertools
from pathlib import Path

import pytest
from support.shard_sets import write_shards

from train.data import filling, packing, shard_source
from train.data.dataloader import ShardDataLoader
from train.data.row_stream import RowSettings, RowStream


@pytest.mark.parametrize("module", [filling, packing, shard_source], ids=lambda m: m.__name__)
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """100 tokens in record batches of 30, 30, 30 and 10; BOS and EOS are two of each."""
    directory = tmp_path_factory.mktemp("shards")
    texts = [b"a" * 28, b"b" * 28, b"c" * 28, b"d" * 8]
    write_shards(str(directory), texts, per_batch=1, per_shard=4)
    return directory


def test_an_epoch_is_a_whole_number_of_windows(shards):
    stream = RowStream([str(shards)], RowSettings(8, patches=False, shuffle_bytes=50))
    assert [stream._until(0, window) for window in range(3)] == [50, 100, 150]
    cursors = [
        cursor for _, cursor in itertools.islice(stream.windows(stream.start(), infinite=True), 4)
    ]
    (starts,) = zip(*(cursor.positions for cursor in cursors), strict=True)
    assert [position.tokens for position in starts] == [0, 60, 100, 160]
    assert [position.epoch for position in starts] == [0, 0, 0, 1]


def rows(shards: Path, ranks: int, batch: int, state: dict, count: int) -> tuple[list, dict]:
    """The rows of each rank's microbatches, and the state after them."""
    config = ShardDataLoader.Config(shards=[str(shards)], patches=False, shuffle_bytes=50)
    read: list = [[] for _ in range(count)]
    states = []
    for rank in range(ranks):
        loader = config.build(dp_world_size=ranks, dp_rank=rank, seq_len=8, local_batch_size=batch)
        loader.load_state_dict(state)
        for n, (inputs, _) in enumerate(itertools.islice(iter(loader), count)):
            read[n] += inputs["input"].tolist()
        states.append(loader.state_dict())
    assert all(state == states[0] for state in states)
    return [row for microbatch in read for row in microbatch], states[0]


def test_two_ranks_then_three(shards):
    expected, _ = rows(shards, ranks=1, batch=1, state={}, count=14)
    first, state = rows(shards, ranks=2, batch=2, state={}, count=2)
    then, _ = rows(shards, ranks=3, batch=1, state=state, count=2)
    assert first == expected[:8] and then == expected[8:14]
