"""Batches for any number of ranks are one sequence of rows, whatever runs ahead or is killed."""

import gc
import itertools
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed.checkpoint as dcp
import tyro
from support.jobs import ROOT
from support.shard_sets import real_texts, write_shards
from torchtitan.config.manager import ConfigManager, custom_registry

from model.layers.patch_layout import check_batch
from model.tokenizer import BYTE_OFFSET, EOS_ID, PAD_ID
from pipeline import open_shards
from pipeline.errors import ConfigError, PipelineError
from train.data.dataloader import ShardDataLoader

SEQ_LEN = 512


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("sets")
    texts = real_texts(60)
    write_shards(f"{root}/a", texts[:40], rates=(0.2, 0.3, 0.25))
    write_shards(f"{root}/b", texts[40:], rates=(0.1, 0.15), seed=1)
    return [f"{root}/a", f"{root}/b"]


def build(shards, rank=0, ranks=1, batch=1, seq_len=SEQ_LEN, **changes) -> ShardDataLoader:
    settings = {"shuffle_bytes": 20_000, "infinite": False} | changes
    config = ShardDataLoader.Config(shards=shards, **settings)
    return config.build(
        dp_world_size=ranks,
        dp_rank=rank,
        tokenizer=None,
        seq_len=seq_len,
        local_batch_size=batch,
        snapshot_every_n_steps=10,
    )


def rows_of(batch) -> list[bytes]:
    inputs, labels = batch
    parts = [*inputs.values(), labels]
    return [b"|".join(part[row].numpy().tobytes() for part in parts) for row in range(len(labels))]


def is_empty(row: bytes) -> bool:
    return row.split(b"|", 1)[0].startswith(np.int32(EOS_ID).tobytes() + np.int32(-1).tobytes())


def interleaved(loaders, count=None) -> list[bytes]:
    """The rows of all ranks in the order of the whole job; all make the same number of batches."""
    batches = [list(itertools.islice(iter(loader), count)) for loader in loaders]
    assert len({len(of_rank) for of_rank in batches}) == 1
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    return [row for ranks in zip(*batches, strict=True) for one in ranks for row in rows_of(one)]


@pytest.fixture(scope="module")
def sequence(sets) -> list[bytes]:
    """All rows of an epoch, in order."""
    return [row for batch in build(sets) for row in rows_of(batch)]


def test_an_epoch_holds_every_token_and_the_model_accepts_it(sets):
    found = Counter()
    for inputs, labels in build(sets, batch=3):
        tokens, lengths = inputs["input"], inputs["patch_lengths"]
        assert tokens.dtype == labels.dtype == lengths.dtype == torch.int32
        assert tokens.shape == labels.shape == (3, SEQ_LEN)
        check_batch(tokens, lengths, 260)
        assert (lengths.sum(1) == (tokens != PAD_ID).sum(1)).all()
        found.update(labels[labels >= 0].tolist())
    texts = [document.text.encode() for url in sets for document in open_shards(url)]
    expected = Counter(byte + BYTE_OFFSET for text in texts for byte in text)
    assert found == expected | {EOS_ID: len(texts)}


@pytest.mark.parametrize(("ranks", "batch"), [(1, 4), (2, 3), (3, 1), (5, 7), (64, 8)])
def test_any_number_of_ranks_reads_the_same_rows(sets, sequence, ranks, batch):
    rows = interleaved([build(sets, rank, ranks, batch) for rank in range(ranks)])
    assert rows[: len(sequence)] == sequence
    rest = rows[len(sequence) :]
    assert len(rest) < ranks * batch and all(map(is_empty, rest))


@pytest.mark.parametrize("seed", range(4))
def test_resumed_anywhere_on_any_number_of_ranks(sets, seed):
    whole = interleaved([build(sets, infinite=True)], 500)
    draw = random.Random(seed)
    read: list[bytes] = []
    state: dict = {}
    while len(read) < 400:
        ranks, batch = draw.randint(1, 5), draw.randint(1, 6)
        loaders = [
            build(sets, rank, ranks, batch, infinite=True, prefetch=draw.randint(1, 5))
            for rank in range(ranks)
        ]
        for loader in loaders:
            loader.load_state_dict(state)
            assert loader.state_dict() == state or not state
        read += interleaved(loaders, draw.randint(1, 10))
        state = loaders[0].state_dict()
    assert read[:500] == whole[: len(read)]


def test_prefetching_changes_nothing(sets, sequence):
    for prefetch in (1, 9):
        loader = build(sets, prefetch=prefetch)
        batches = iter(loader)
        for i in range(5):
            assert rows_of(next(batches)) == sequence[i : i + 1]
            time.sleep(0.02)  # the thread runs ahead; the state does not
            resumed = build(sets)
            resumed.load_state_dict(loader.state_dict())
            assert rows_of(next(iter(resumed))) == sequence[i + 1 : i + 2]


def test_iterating_again_starts_anew(sets, sequence):
    loader = build(sets)
    assert interleaved([loader]) == interleaved([loader]) == sequence
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert list(loader) == [] and interleaved([loader]) == sequence
    # As torchtitan's validator does it.
    config = replace(loader.config, infinite=True)
    again = config.build(
        dp_world_size=1, dp_rank=0, tokenizer=None, seq_len=512, local_batch_size=1
    )
    assert len(list(itertools.islice(again, len(sequence) + 3))) == len(sequence) + 3


def test_bytes_alone(sets):
    rows = list(build(sets, batch=2, patches=False))
    assert all(list(inputs) == ["input"] for inputs, _ in rows)
    labels = sum(int((labels >= 0).sum()) for _, labels in rows)
    documents = [document.text.encode() for url in sets for document in open_shards(url)]
    assert labels == sum(len(text) + 1 for text in documents)


def test_weights_go_on_where_they_were(sets):
    settings = {"weights": (1, 3), "infinite": True}
    whole = interleaved([build(sets, **settings)], 300)
    first = build(sets, batch=5, **settings)
    read = interleaved([first], 20)
    second = build(sets, batch=10, **settings)
    second.load_state_dict(first.state_dict())
    assert read + interleaved([second], 20) == whole
    with pytest.raises(ConfigError, match=r"dataloader.weights: .* no common end"):
        build(sets, weights=(1, 3))
    with pytest.raises(ConfigError, match=r"dataloader\.prefetch: must be at least 1"):
        build(sets, prefetch=0)


def test_a_checkpoint_of_other_rows_is_refused(sets):
    loader = build(sets, infinite=True)
    next(iter(loader))
    state = loader.state_dict()
    for changes, message in (
        ({"seed": 1}, r"seed \(was 0, is 1\)"),
        ({"seq_len": 256}, r"seq_len \(was 512, is 256\), patches_per_row"),
        ({"shards": sets[:1]}, "shards"),
        ({"threshold": 1.0}, r"threshold \(was None, is 1.0\)"),
        ({"weights": (1, 1)}, r"weights \(was \[\], is \[1, 1\]\)"),
        ({"patches": False}, "patches"),
    ):
        other = build(**{"shards": sets, "infinite": True} | changes)
        with pytest.raises(ConfigError, match=f"made with other rows: .*{message}"):
            other.load_state_dict(state)
    build(sets, prefetch=9).load_state_dict(state)


def test_distributed_checkpoints_hold_the_state(sets, sequence, tmp_path):
    loader = build(sets)
    next(iter(loader))
    # One process alone is what is meant.
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    dcp.save({"dataloader": loader}, checkpoint_id=tmp_path, no_dist=True)
    resumed = build(sets)
    dcp.load({"dataloader": resumed}, checkpoint_id=tmp_path, no_dist=True)
    assert resumed.state_dict() == loader.state_dict()
    assert interleaved([resumed]) == sequence[1:]


def shard_files(directory) -> list:
    return sorted(directory.glob("shards/*.arrow"))


@pytest.mark.parametrize("damage", ["gone", "cut short", "overwritten", "another", "empty"])
def test_a_damaged_shard_is_named(sets, tmp_path, damage):
    """In the middle of the run, and in the thread that trains."""
    directory = tmp_path / "set"
    shutil.copytree(sets[0], directory)
    victim, other = shard_files(directory)[1:3]
    loader = build([str(directory)], infinite=True, shuffle_bytes=2000)
    batches = iter(loader)
    next(batches)
    if damage == "gone":
        victim.unlink()
    elif damage == "cut short":
        victim.write_bytes(victim.read_bytes()[:-200])
    elif damage == "overwritten":
        victim.write_bytes(b"\x55" * victim.stat().st_size)
    elif damage == "empty":
        with pa.ipc.open_file(other) as whole, pa.ipc.new_file(victim, whole.schema):
            pass
    else:
        shutil.copy(other, victim)
    with pytest.raises(PipelineError, match=f"{victim}: (cannot be read|is damaged)"):
        for _ in range(1000):
            next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    wait_for_threads()


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def wait_for_threads() -> None:
    """Fails if a thread of a dataloader goes on."""
    for _ in range(100):
        gc.collect()
        if not prefetching():
            return
        time.sleep(0.02)
    raise AssertionError("the thread goes on")


def test_the_thread_ends(sets):
    cores = torch.get_num_threads()
    exhausted = build(sets)
    list(exhausted)
    wait_for_threads()
    closed = iter(build(sets, infinite=True))
    next(closed)
    assert len(prefetching()) == 2  # one makes windows, one makes batches of them
    closed.close()
    wait_for_threads()
    dropped = iter(build(sets, infinite=True))
    next(dropped)
    del dropped
    wait_for_threads()
    assert torch.get_num_threads() == cores


def test_a_process_ends_with_a_loader_open(sets):
    """And needs no Ray."""
    code = f"""
import sys
from train.data.dataloader import ShardDataLoader
config = ShardDataLoader.Config(shards={sets}, shuffle_bytes=20000)
batches = iter(config.build(dp_world_size=1, dp_rank=0, seq_len=512, local_batch_size=1))
next(batches)
print("ray" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


@dataclass
class Job:
    dataloader: ShardDataLoader.Config = field(default_factory=ShardDataLoader.Config)


def test_the_command_line_sets_it():
    arguments = (
        "--dataloader.shards a,s3://b/c --dataloader.weights 1 2.5 --dataloader.threshold 1.3"
    )
    ConfigManager()  # registers torchtitan's own way of writing lists
    job = tyro.cli(Job, args=arguments.split(), default=Job(), registry=custom_registry)
    assert job.dataloader.shards == ["a", "s3://b/c"]
    assert job.dataloader.weights == (1.0, 2.5) and job.dataloader.threshold == 1.3
