"""Damage is never silent: single flipped bits in shards, columns and entries, by every reader; and
sets of format version 1, which have no hashes.

FLIPS=1000 in the environment makes a campaign of it.
"""

import functools
import logging
import os
import random
import shutil
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from support import tiny
from support.shard_sets import as_version_1, real_texts, write_manifest, write_shards

from model import save_blt
from pipeline import open_shards
from pipeline.errors import DamagedShardError, PipelineError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import evaluate
from pipeline.export.config import ExportShardsConfig
from pipeline.export.export_shard import export_shard, plan_export
from pipeline.export.layouts import LAYOUTS
from pipeline.report.recount import count_shard
from pipeline.shards.entries import entry_path, read_entries, read_entry
from pipeline.shards.format import ipc_options
from pipeline.shards.lost import lost
from pipeline.shards.random_access import DocumentIndex
from pipeline.shards.record_batches import BatchIndex, read_batches
from pipeline.shards.tables import BATCHES_FILE, ENTRIES_FILE, ENTRIES_SCHEMA, as_shards, entry_rows
from pipeline.shards.upgrade import with_batches
from pipeline.shards.verify import verify
from pipeline.storage.output import OutputDirectory
from train.data.shard_source import ShardSource

FLIPS = int(os.environ.get("FLIPS", "300"))
DOCUMENTS = 30


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A set of 3 shards with 3 record batches each, of some KB."""
    url = tmp_path_factory.mktemp("whole") / "set"
    texts = [text[:300] for text in real_texts(DOCUMENTS)]
    write_shards(str(url), texts, per_batch=4)
    return url


def content(documents) -> list:
    return [(d.sample_id, d.text, *map(np.ndarray.tobytes, d[2:])) for d in documents]


def iterate(url: Path) -> list:
    return content(open_shards(str(url)))


def jump(url: Path) -> list:
    documents = DocumentIndex(open_shards(str(url)))
    return content(documents[number] for number in range(len(documents)))


def train(url: Path) -> list:
    shards = open_shards(str(url))
    source = ShardSource(shards, None, patches=True)
    return sorted(each.text.tobytes() for each in source.read(0, 0, shards.statistics.tokens))


def recount(url: Path) -> list:
    shards = open_shards(str(url))
    return [count_shard(shards, shard).to_json() for shard in shards.entries]


def export(url: Path) -> list:
    config = ExportShardsConfig(str(url), f"{url}-exported", "parquet")
    shards, layout = open_shards(str(url)), LAYOUTS["parquet"]
    output = OutputDirectory(config.output)
    pieces = plan_export(shards, layout, config)
    return [export_shard(shards, piece, layout, config, output).content for piece in pieces]


@functools.cache
def saved_blt() -> tempfile.TemporaryDirectory:
    directory = tempfile.TemporaryDirectory()
    save_blt(tiny.blt(), directory.name)
    return directory


def score(url: Path) -> list:
    """Evaluation, with the patches that are stored and with others."""
    results = []
    for threshold in (None, 4.4):
        config = EvaluateConfig(saved_blt().name, shards=str(url), threshold=threshold)
        result = evaluate(config, Console(quiet=True))
        assert result.complete
        results.append((result.total, result.sources))
    return results


READERS = (iterate, jump, train, recount, export, score)


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def is_in(index: BatchIndex, place: int) -> bool:
    """Whether a byte of a file belongs to one of its record batches."""
    return bool(((index.offset <= place) & (place < index.offset + index.length)).any())


def test_no_flipped_bit_in_a_file_is_silent(whole, tmp_path):
    """A reader names the file, or the bit is in what no reader looks at: verification names it."""
    draw = random.Random(0)
    shards = open_shards(str(whole))
    indexes = {shard.path: shards.batch_index(shard) for shard in shards.entries}
    for name, table in ((ENTRIES_FILE, "entries"), (BATCHES_FILE, "batches")):
        indexes[name] = BatchIndex.from_json(shards.manifest[table]["parts"])
    expected = {reader: reader(whole) for reader in READERS}
    url = tmp_path / "set"
    shutil.copytree(whole, url)
    noticed = 0
    for number in range(FLIPS):
        name, index = draw.choice(list(indexes.items()))
        place, bit = draw.randrange((url / name).stat().st_size), draw.randrange(8)
        flip(url / name, place, bit)
        reader = READERS[number % len(READERS)]
        try:
            assert reader(url) == expected[reader], f"{name}, bit {bit} of byte {place}"
            assert not is_in(index, place), f"{name}, bit {bit} of byte {place}"
            assert any(str(url / name) in problem for problem in verify(open_shards(str(url))))
        except PipelineError as error:
            assert str(error).startswith(f"{url / name}: is damaged (record batch "), error
            noticed += 1
        flip(url / name, place, bit)
    assert noticed > FLIPS / 4
    assert iterate(url) == expected[iterate]


def test_no_flipped_bit_in_an_entry_is_silent(whole, tmp_path):
    draw = random.Random(1)
    (name, *_), output = read_entries(OutputDirectory(str(whole))), OutputDirectory(str(tmp_path))
    path = tmp_path / entry_path(name)
    shutil.copytree(whole / "entries", path.parent)
    for _ in range(FLIPS):
        place, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
        flip(path, place, bit)
        with pytest.raises(PipelineError, match=f"{path}: is damaged: .*restore it, or remove"):
            read_entry(output, name)
        flip(path, place, bit)
    shutil.copy(path, path.with_name("other.json"))
    with pytest.raises(PipelineError, match=f"other.json: is damaged: it is that of '{name}'"):
        read_entries(output)


def test_one_record_batch_by_itself(whole):
    """It is read without the rest of the file, with the columns that are asked for."""
    shards = open_shards(str(whole))
    assert shards.shards.documents.tolist() == [12, 12, 6]
    assert shards.shards.batches.tolist() == [3, 3, 2]
    every = [list(shards.shard_batches(number)) for number in range(3)]
    assert sum(map(sum, [[len(b) for b in of] for of in every])) == DOCUMENTS
    for number, batches in enumerate(every):
        index = shards.batch_index(number)
        assert index.rows.tolist() == [len(batch) for batch in batches]
        assert index.tokens.sum() == shards.shards.tokens[number]
        for i, batch in enumerate(batches):
            assert shards.read_batch(number, i).equals(batch)
            wanted = shards.read_batch(number, i, ["patch_lengths", "text"])
            assert wanted.equals(batch.select(["patch_lengths", "text"]))
    assert shards.path(1) == f"{whole}/shards/000000-00000-00001.arrow"
    with pytest.raises(KeyError, match="not all of"):
        shards.read_batch(0, 0, ["texts"])


def test_files_are_those_that_pyarrow_alone_writes(whole, tmp_path):
    shards = open_shards(str(whole))
    for number in range(3):
        with pa.ipc.new_file(str(tmp_path / "a"), shards.schema, options=ipc_options()) as writer:
            for batch in shards.shard_batches(number):
                writer.write_batch(batch)
        assert (tmp_path / "a").read_bytes() == Path(shards.path(number)).read_bytes()


def test_remote_sets_are_read_in_ranges(whole):
    texts = [text[:300] for text in real_texts(DOCUMENTS)]
    remote = write_shards("memory://test_damage/set", texts, per_batch=4)
    assert content(remote) == iterate(whole)
    last = remote.read_batch(2, 1)
    assert last.equals(open_shards(str(whole)).read_batch(2, 1))
    path = remote.path(2)
    with fsspec.open(path, "rb") as file:
        data = file.read()
    end = int(remote.batch_index(2).offset[1]) + 9
    for damaged in (data[:end], b""):
        with fsspec.open(path, "wb") as file:
            file.write(damaged)
        with pytest.raises(DamagedShardError, match=f"{path}: .*the file ends before it does"):
            remote.read_batch(2, 1)
    fsspec.filesystem("memory").rm("/test_damage", recursive=True)
    with pytest.raises(DamagedShardError, match=f"{path}: cannot be read"):
        remote.read_batch(2, 1)


def test_the_message_says_which_batch(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "set")
    shards = open_shards(str(tmp_path / "set"))
    path, index = Path(shards.path(1)), shards.batch_index(1)
    flip(path, int(index.offset[1]) + 100, 3)
    with pytest.raises(DamagedShardError) as raised:
        list(shards.shard_batches(1))
    assert str(raised.value) == (
        f"{path}: is damaged (record batch 1 of 3: its hash is not that of what was written); "
        "restore it, or remove it and run its patch_corpus.py command again"
    )
    assert len(shards.read_batch(1, 2)) == 4
    with path.open("r+b") as file:
        file.truncate(int(index.offset[2]) + 50)
    with pytest.raises(DamagedShardError, match="record batch 2 of 3: the file ends before it"):
        shards.read_batch(1, 2)
    with pytest.raises(DamagedShardError, match=r"it has \d[\d,]+ bytes, \d[\d,]+ were written"):
        list(shards.shard_batches(1, start=2))


def test_neighbours_are_read_together_and_others_are_not(whole, monkeypatch):
    shards = open_shards(str(whole))
    reads = []
    real = OutputDirectory.read_into
    monkeypatch.setattr(
        OutputDirectory,
        "read_into",
        lambda self, name, start, target: reads.append(start) or real(self, name, start, target),
    )
    index, name = shards.batch_index(0), shards.entries[0].path
    reads.clear()
    whole_shard = list(read_batches(shards.output, name, index, shards.schema))
    assert reads == [index.offset[0]] and len(whole_shard) == 3
    reads.clear()
    part = BatchIndex(*(array[[0, 2]] for array in index))  # of which the second is not the next
    assert [
        b.equals(whole_shard[i])
        for b, i in zip(read_batches(shards.output, name, part, shards.schema), (0, 2), strict=True)
    ] == [True] * 2
    assert reads == [index.offset[0], index.offset[2]]


def test_version_1_is_read_and_said_to_be_unchecked(whole, tmp_path, caplog):
    url = tmp_path / "set"
    shutil.copytree(whole, url)
    new, old = open_shards(str(whole)), as_version_1(url)
    with caplog.at_level(logging.WARNING):
        for reader in READERS:
            assert reader(url) == reader(whole)
        list(open_shards(str(url)))
    (record,) = caplog.records
    assert record.message.startswith(f"{url}: is of format version 1, whose record batches have no")
    assert list(verify(old)) == [] and not old.is_checked
    for number in range(3):
        known, found = new.batch_index(number), old.batch_index(number)
        assert found.hash is None and found.tokens.sum() == known.tokens.sum()
        assert [a.tolist() for a in found[:3]] == [a.tolist() for a in known[:3]]
        assert np.abs(found.tokens / known.tokens - 1).max() < 0.5
    for row, other in zip(new.entries, old.entries, strict=True):
        assert other.batches is None
        assert (row.tokens, row.entropy, row.path) == (other.tokens, other.entropy, other.path)


def test_a_damaged_shard_of_version_1_never_crashes_a_reader(whole, tmp_path):
    """What it has no hash for is a sentence or other text, never a traceback."""
    draw = random.Random(2)
    url = tmp_path / "set"
    shutil.copytree(whole, url)
    path = Path(as_version_1(url).path(0))
    data = path.read_bytes()
    errors = 0
    for number in range(FLIPS // 3):
        place = draw.randrange(len(data) - 900 if number % 2 else 0, len(data))
        flip(path, place, draw.randrange(8))
        try:
            list(open_shards(str(url)).batches())
        except PipelineError as error:
            assert str(error).startswith(f"{path}: ")
            errors += 1
        path.write_bytes(data)
    assert errors > FLIPS / 20
    path.write_bytes(data[:-100])
    with pytest.raises(PipelineError, match=f"{path}: cannot be read: it has .* were written"):
        list(open_shards(str(url)).batches())


def test_entries_of_version_1_become_those_of_version_2(whole, tmp_path):
    url = tmp_path / "set"
    shutil.copytree(whole, url)
    shards = as_version_1(url)
    output = shards.output
    old = list(read_entries(output).values())
    rows = pa.ipc.read_record_batch(entry_rows(old).serialize(), ENTRIES_SCHEMA)
    assert list(as_shards(rows)) == [entry.row() for entry in old] == shards.entries
    entries = [with_batches(output, e, shards.schema) for e in read_entries(output).values()]
    write_manifest(
        output, {"patcher": shards.manifest["patcher"], "columns": shards.schema.names}, entries
    )
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        assert (url / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    as_version_1(url)
    Path(shards.path(2)).write_bytes(Path(shards.path(2)).read_bytes()[::-1])
    (*_, entry) = read_entries(output).values()
    with pytest.raises(DamagedShardError, match="it does not end as an Arrow file"):
        with_batches(output, entry, shards.schema)


def test_a_shard_swapped_for_another_of_its_size_is_named(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "set")
    shards = open_shards(str(tmp_path / "set"))
    assert not list(lost(shards))
    first, second = sorted((tmp_path / "set" / "shards").iterdir())[:2]
    other = bytearray(second.read_bytes())
    first.write_bytes(other[: first.stat().st_size].ljust(first.stat().st_size, b"\0"))
    (problem,) = lost(shards)
    assert problem == f"{first}: is another file than was written, or damaged"
