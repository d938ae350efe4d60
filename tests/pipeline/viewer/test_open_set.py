"""A set that is written anew while a page shows it."""

import shutil
from pathlib import Path

import pytest
from support.shard_sets import write_shards

from model import Patcher
from pipeline.errors import ConfigError, DamagedShardError
from pipeline.viewer.open_set import OpenSet


def test_a_set_that_is_written_anew_is_opened_anew(tmp_path):
    url = str(tmp_path / "set")
    write_shards(url, [b"first text", b"second text"])
    documents = OpenSet(url)
    assert documents.ask(lambda found: found[1].text) == "second text" and len(documents) == 2

    shutil.rmtree(url)
    with pytest.raises(ConfigError, match=f"--shards {url}"):  # and not that it is damaged
        documents.ask(lambda found: found[1])
    write_shards(url, [b"other text", b"another", b"a third"], patcher=Patcher(0.5))
    assert documents.ask(lambda found: found[1].text) == "another" and len(documents) == 3
    assert documents.ask(lambda found: found.shards.patcher) == Patcher(0.5)
    with pytest.raises(IndexError, match="no document 3"):
        documents.ask(lambda found: found[3])


def test_a_longer_set_is_found_by_its_new_numbers(tmp_path):
    url = str(tmp_path / "set")
    texts = [b"one", b"two", b"three", b"four", b"five"]
    write_shards(url, texts[:4], per_shard=1)
    documents = OpenSet(url)
    write_shards(url, texts, per_shard=1)
    assert documents.ask(lambda found: found[4].text) == "five"


def test_damage_is_told_as_it_is(tmp_path):
    url = str(tmp_path / "set")
    shard = Path(write_shards(url, [b"first text"]).path(0))
    documents = OpenSet(url)
    with shard.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DamagedShardError, match="is damaged"):
        documents.ask(lambda found: found[0])
