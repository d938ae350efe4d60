"""What a rank reads: its share and little more, whatever the number of ranks."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from support.shard_sets import write_shards

from train.data.dataloader import ShardDataLoader
from train.data.lanes import Line, Place
from train.data.ranks import RankShare
from train.data.row_settings import LANES

ROW = 64


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2000))
def test_each_row_goes_to_one_rank_which_reads_its_lane(ranks, lanes, batch, start):
    shares = [RankShare(rank, ranks, batch) for rank in range(ranks)]
    rows = [share.rows(start, lanes) for share in shares]
    assert all(len(part) == batch and (np.diff(part) > 0).all() for part in rows)
    assert sorted(np.concatenate(rows)) == list(range(start, start + ranks * batch))
    owners = Counter(lane for share in shares for lane in share.lanes(lanes))
    assert set(owners) == set(range(lanes))
    for share, part in zip(shares, rows, strict=True):
        assert {row % lanes for row in part} <= set(share.lanes(lanes))
        common = {lane for lane in share.lanes(lanes) if owners[lane] > 1}
        assert common == set(share.common_lanes(lanes))


@given(
    st.integers(1, 3000),
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_lanes_cover_each_epoch_once_whatever_the_windows(tokens, lanes, strands, windows, epoch):
    found: Counter = Counter()
    for lane in range(lanes):
        line = Line(tokens, lanes, lane, whole=False, strands=strands)
        limits = [tokens * window // windows for window in range(windows + 1)]
        for begin, end in itertools.pairwise(limits):
            for of_epoch, first, last in line.spans(Place(epoch, 0), begin, end):
                assert of_epoch == epoch
                found.update(range(first, last))
    assert found == Counter(range(tokens))


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 8), st.integers(0, 10**5))
def test_a_lane_reads_all_of_a_small_set(tokens, lanes, strands, offset):
    line = Line(tokens, lanes, lanes - 1, whole=True, strands=strands)
    found = Counter()
    place = line.after(Place(3), offset)
    for _, first, last in line.spans(Place(place.epoch), 0, tokens * lanes):
        found.update(range(first, last))
    assert found == Counter(range(tokens))
    # Places that follow one another are one way.
    there = line.after(line.after(Place(), offset), 7)
    assert there == line.after(Place(), offset + 7)
    # Without weights an epoch is a part of the set: it is over, and the next one begins.
    assert line._replace(whole=False).after(Place(3, tokens), 0) == Place(4, 0)


@pytest.mark.parametrize(
    ("most", "counts"),
    [
        (1.0, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
        (1.13, [3, 5, 6, 7, 9, 10, 12, 14, 18, 20, 24, 48, 72, 96]),
        (1.26, [36, 40, 80, 160]),
        (2.0, [100, 120, 192, 384, 1024]),
    ],
)
def test_the_text_that_a_rank_reads_with_the_default_lanes(most, counts):
    for ranks in counts:
        assert 1 <= RankShare(ranks - 1, ranks, 4).text_factor(LANES) <= most


@pytest.fixture(scope="module")
def many_batches() -> str:
    """A set of 2304 record batches: enough for the default number of lanes."""
    url = "memory://many"
    texts = [f"{i:05d} is one".encode() for i in range(2304)]
    write_shards(url, texts, per_batch=1, per_shard=256, entropies=False)
    return url


@pytest.fixture
def read_bytes(monkeypatch) -> Counter:
    """Bytes that storage has given, by directory and file of a set."""
    read: Counter = Counter()
    original = MemoryFileSystem.cat_file

    def cat_file(self, path, *arguments, **settings):
        data = original(self, path, *arguments, **settings)
        parts = Path(path).parts
        read["shards" if "shards" in parts else parts[-1]] += len(data)
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return read


def test_a_rank_reads_its_share(many_batches, read_bytes):
    """Ranks are simulated: none needs the others. Windows are of some record batches."""
    config = ShardDataLoader.Config(
        shards=[many_batches], shuffle_bytes=LANES * 14, patches=False, infinite=False
    )
    per_row, labels, opened = {}, {}, {}
    for ranks in (1, 8, 64, 512):
        numbers = {0, ranks // 3, ranks - 1}
        read_bytes.clear()
        labels[ranks] = 0
        for rank in numbers:
            loader = config.build(
                dp_world_size=ranks, dp_rank=rank, seq_len=ROW, local_batch_size=4
            )
            assert loader.stream.lanes == LANES
            labels[ranks] += sum(int((batch >= 0).sum()) for _, batch in loader)
        per_row[ranks] = read_bytes["shards"] / labels[ranks]
        opened[ranks] = sum(read_bytes.values()) - read_bytes["shards"]
        assert labels[ranks] == pytest.approx(labels[1] / ranks * len(numbers), rel=0.1)
        assert per_row[ranks] == pytest.approx(per_row[1], rel=0.05)
        # Each rank opens the set, and reads no more of its tables than one rank alone.
        assert opened[ranks] <= len(numbers) * opened[1] < len(numbers) * 400_000


def test_a_resumed_rank_reads_no_more_than_its_windows_in_progress(many_batches, read_bytes):
    config = ShardDataLoader.Config(shards=[many_batches], shuffle_bytes=LANES * 14, patches=False)
    states: dict = {}
    for rank in range(64):
        loader = config.build(dp_world_size=64, dp_rank=rank, seq_len=ROW, local_batch_size=8)
        list(itertools.islice(loader, 2))
        states |= loader.state_dict()
    read_bytes.clear()
    resumed = config.build(dp_world_size=512, dp_rank=5, seq_len=ROW, local_batch_size=8)
    resumed.load_state_dict({key: states[key] for key in ("rows", "lane 5")})
    next(iter(resumed))
    # 8 rows of the lane, and windows that were made ahead.
    assert 0 < read_bytes["shards"] < 100 * 2_000
