"""The worked examples of the docstrings in ``train/data``."""

import doctest
import itertools
from pathlib import Path

import pytest
from support.shard_sets import write_shards

from train.data import filling, lanes, packing, ranks, row_cutter, shard_source
from train.data.row_settings import RowSettings
from train.data.row_stream import RowStream
from train.data.shard_source import ShardSource

MODULES = [filling, lanes, packing, ranks, row_cutter, shard_source]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Four times 100 tokens in record batches of 30, 30, 30, 10, of which 2 are BOS and EOS."""
    directory = tmp_path_factory.mktemp("shards")
    texts = [b"a" * 28, b"b" * 28, b"c" * 28, b"d" * 8]
    write_shards(str(directory), texts * 4, per_batch=1, per_shard=16)
    return directory


def test_an_epoch_is_a_whole_number_of_windows(shards):
    settings = RowSettings(8, patches=False, shuffle_bytes=200, lanes=1)
    stream = RowStream([str(shards)], settings)
    opened = itertools.islice(stream.windows(stream.start([0]), infinite=True), 4)
    tokens, epochs = [], []
    for window in opened:
        tokens.append(int(window.window.documents.lengths_D.sum()))
        epochs.append(window.cursor.begin[0].epoch)
    assert tokens == [240, 160, 240, 160] and epochs == [0, 0, 1, 1]


def test_ranges_of_a_line_of_tokens(tmp_path):
    texts = [b"a" * 28, b"b" * 38, b"c" * 28]
    shards = write_shards(str(tmp_path), texts, per_batch=1, per_shard=2)
    source = ShardSource(shards, None, patches=False)
    source.seed = (1,)
    epoch = next(e for e in range(99) if next(source.read(e, 0, 1)).text[0] == ord("c"))
    found = [
        [bytes(documents.text[:1]) for documents in source.read(epoch, *limits)]
        for limits in ((0, 50), (50, 100))
    ]
    assert found == [[b"c", b"a"], [b"b"]]
