"""Batches for any number of ranks are one sequence of rows, whatever runs ahead or is killed."""

import gc
import itertools
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

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
    settings = {"shuffle_bytes": 8_000, "lanes": 8} | changes
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


def read(loaders, count: int) -> tuple[list[list[bytes]], dict]:
    """Rows of each microbatch of all ranks, in the order of their bytes, and the state."""
    batches = [[rows_of(batch) for batch in itertools.islice(loader, count)] for loader in loaders]
    together = [sorted(itertools.chain(*ranks)) for ranks in zip(*batches, strict=True)]
    return together, union(loader.state_dict() for loader in loaders)


def union(states) -> dict:
    """The state of all ranks, as a checkpoint has it: equal wherever two have the same key."""
    together: dict = {}
    for state in states:
        assert all(together.get(key, value) == value for key, value in state.items())
        together |= state
    return together


def in_order(batches: list[list[bytes]]) -> list[bytes]:
    """All rows of microbatches of one row."""
    return [row for (row,) in batches]


def together(rows: list[bytes], size: int) -> list[list[bytes]]:
    """The rows of each microbatch of so many rows of all ranks."""
    return [sorted(rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]


@pytest.fixture(scope="module")
def sequence(sets) -> list[bytes]:
    """The first rows, in order: some epochs."""
    return in_order(read([build(sets)], 700)[0])


def test_an_epoch_holds_every_token_and_the_model_accepts_it(sets):
    found = Counter()
    for inputs, labels in build(sets, batch=3, infinite=False):
        tokens, lengths = inputs["input"], inputs["patch_lengths"]
        assert tokens.dtype == labels.dtype == lengths.dtype == torch.int32
        assert tokens.shape == labels.shape == (3, SEQ_LEN)
        check_batch(tokens, lengths, 260)
        assert (lengths.sum(1) == (tokens != PAD_ID).sum(1)).all()
        found.update(labels[labels >= 0].tolist())
    texts = [document.text.encode() for url in sets for document in open_shards(url)]
    expected = Counter(byte + BYTE_OFFSET for text in texts for byte in text)
    assert found == expected | {EOS_ID: len(texts)}


@pytest.mark.parametrize(
    ("ranks", "batch"), [(1, 4), (2, 3), (3, 8), (3, 1), (4, 6), (5, 7), (8, 3), (12, 2), (64, 2)]
)
def test_any_number_of_ranks_reads_the_same_rows(sets, sequence, ranks, batch):
    expected = together(sequence, ranks * batch)
    loaders = [build(sets, rank, ranks, batch) for rank in range(ranks)]
    assert loaders[0].stream.lanes == 8
    assert read(loaders, len(expected))[0] == expected
    last = range(len(expected) * ranks * batch)[-ranks * batch :]
    assert sorted(row for loader in loaders for row in loader.last_rows) == list(last)


@pytest.mark.parametrize("ranks", [1, 3, 8, 20])
def test_an_epoch_of_any_number_of_ranks(sets, ranks):
    """The same rows, each once; ranks may have different numbers of microbatches."""
    rows: list[list[bytes]] = []
    for count in (1, ranks):
        loaders = [build(sets, rank, count, 2, infinite=False) for rank in range(count)]
        found = [row for loader in loaders for batch in loader for row in rows_of(batch)]
        rows.append(sorted(row for row in found if not is_empty(row)))
        assert all(loader.state_dict() == {} for loader in loaders)
    assert rows[0] == rows[1]


@pytest.mark.parametrize("seed", range(4))
def test_resumed_anywhere_on_any_number_of_ranks(sets, sequence, seed):
    draw = random.Random(seed)
    rows, state = 0, {}
    while True:
        ranks, batch, count = draw.randint(1, 9), draw.randint(1, 6), draw.randint(1, 10)
        if rows + ranks * batch * count > len(sequence):
            break
        loaders = [
            build(sets, rank, ranks, batch, prefetch=draw.randint(1, 5)) for rank in range(ranks)
        ]
        for loader in loaders:
            loader.load_state_dict(state)
        assert union(loader.state_dict() for loader in loaders) == state or not state
        found, state = read(loaders, count)
        expected = sequence[rows : rows + ranks * batch * count]
        assert found == together(expected, ranks * batch)
        rows += ranks * batch * count
    assert rows > 400


@pytest.mark.parametrize(("before", "after"), [(3, 5), (5, 3), (7, 1), (1, 7), (6, 9)])
def test_every_token_once_before_and_after_resuming(sets, before, after):
    """Over two epochs, counted by position: the text's bytes with their neighbours."""
    whole = build(sets).stream
    state: dict = {}
    found: Counter = Counter()
    while True:
        ranks = before if not state else after
        loaders = [build(sets, rank, ranks, 2) for rank in range(ranks)]
        for loader in loaders:
            loader.load_state_dict(state)
        batches, state = read(loaders, 4)
        found.update(row for batch in batches for row in batch)
        if json.loads(state["rows"])["rows"] > 300:
            break
    rows = json.loads(state["rows"])["rows"]
    expected = Counter(in_order(read([build(sets)], rows)[0]))
    assert found == expected and whole.lanes == 8


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
    assert in_order(read([loader], 20)[0]) == in_order(read([loader], 20)[0]) == sequence[:20]
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert in_order(read([loader], 20)[0]) == sequence[20:40]
    assert in_order(read([loader], 20)[0]) == sequence[:20]


def test_bytes_alone(sets):
    rows = list(build(sets, batch=2, patches=False, infinite=False))
    assert all(list(inputs) == ["input"] for inputs, _ in rows)
    labels = sum(int((labels >= 0).sum()) for _, labels in rows)
    documents = [document.text.encode() for url in sets for document in open_shards(url)]
    assert labels == sum(len(text) + 1 for text in documents)


def test_weights_go_on_where_they_were(sets):
    whole = in_order(read([build(sets, weights=(1, 3))], 300)[0])
    first = build(sets, batch=5, weights=(1, 3))
    assert read([first], 20)[0] == together(whole[:100], 5)
    second = build(sets, batch=10, weights=(1, 3))
    second.load_state_dict(first.state_dict())
    assert read([second], 20)[0] == together(whole[100:], 10)
    with pytest.raises(ConfigError, match=r"dataloader.weights: .* no common end"):
        build(sets, weights=(1, 3), infinite=False)
    with pytest.raises(ConfigError, match=r"dataloader\.prefetch: must be at least 1"):
        build(sets, prefetch=0)


def test_a_checkpoint_of_other_rows_is_refused(sets):
    loader = build(sets)
    next(iter(loader))
    state = loader.state_dict()
    for changes, message in (
        ({"seq_len": 256}, r"seq_len \(was 512, is 256\), patches_per_row"),
        ({"shards": sets[:1]}, "shards"),
        ({"threshold": 1.1}, r"rule \(was \{\}, is \{'threshold': 1.1\}\)"),
        ({"weights": (1, 1)}, r"weights \(was \[\], is \[1, 1\]\)"),
        ({"patches": False}, "patches"),
        ({"shuffle_bytes": 16_000}, r"window_bytes \(was 1000, is 2000\)"),
    ):
        changes = {"shards": sets} | changes
        way_on = r".*resume with the same.*\(--dataloader.change-on-resume\), or leave the"
        with pytest.raises(ConfigError, match=f"made with other rows: .*{message}{way_on}"):
            build(**changes).load_state_dict(state)
        build(**changes, change_on_resume=True).load_state_dict(state)
    for change in (False, True):
        with pytest.raises(ConfigError, match=r"seed \(was 0, is 1\); resume with the same shards"):
            build(sets, seed=1, change_on_resume=change).load_state_dict(state)
    build(sets, prefetch=9).load_state_dict(state)


def texts_read(loader, count: int) -> Counter:
    """Documents that begin in so many rows, by their first bytes: they have numbers there."""
    found: Counter = Counter()
    for inputs, _ in itertools.islice(loader, count):
        for row in inputs["input"].numpy():
            for start in np.flatnonzero(row == 1):
                found[bytes((row[start + 1 : start + 7] - BYTE_OFFSET).astype(np.uint8))] += 1
    return found


@pytest.fixture(scope="module")
def numbered_sets(tmp_path_factory) -> list[str]:
    """Three sets of documents, each of which begins with its set's letter and its number."""
    root = tmp_path_factory.mktemp("numbered")
    for name in "abc":
        texts = [f"{name}{i:05d}".encode() + b" and so on" * (i % 7) for i in range(300)]
        write_shards(f"{root}/{name}", texts, per_batch=3)
    return [f"{root}/{name}" for name in "abc"]


def test_the_mixture_changes_and_sets_go_on_at_their_places(numbered_sets):
    """Another set comes in, one leaves, and rows and shares change; on other ranks."""
    a, b, c = numbered_sets
    size = {"seq_len": 128, "lanes": 4, "shuffle_bytes": 1_600}
    size |= {"rule": "static", "patch_size": 8}  # no document is cut within its number
    before = [build([a, b], rank, 2, 1, weights=(1, 1), **size) for rank in range(2)]
    held = [texts_read(loader, 30) for loader in before]
    first = held[0] + held[1]
    state = union(loader.state_dict() for loader in before)
    assert before[0].stream.lanes == 4
    changed = {"seq_len": 160, "lanes": 2, "shuffle_bytes": 1_200, "weights": (3, 1)}
    changed |= {"rule": "static", "patch_size": 9}
    after = [build([c, a], rank, 3, 1, change_on_resume=True, **changed) for rank in range(3)]
    for loader in after:
        loader.expect(list(state))
        loader.load_state_dict(state)
    assert json.loads(union(one.state_dict() for one in after)["rows"])["rows"] == 60
    held = [texts_read(loader, 16) for loader in after]
    second = held[0] + held[1] + held[2]
    of_a = [Counter({k: n for k, n in part.items() if k[:1] == b"a"}) for part in (first, second)]
    # Set a goes on: but for windows in progress, 4 lanes with 200 bytes of it, no document comes
    # again before all have been read.
    assert max(of_a[0].values()) == 1 and 60 < len(of_a[0]) < 200
    again = of_a[0] & of_a[1]
    assert len(of_a[1]) > 0 and sum(again.values()) <= 4 * 200 / 30
    of_c = sum(n for k, n in second.items() if k[:1] == b"c")
    assert 1.8 < of_c / sum(of_a[1].values()) < 4.5
    assert not any(k[:1] == b"b" for k in second)
    # The next start with the same settings is an exact one.
    state = union(loader.state_dict() for loader in after)
    whole, _ = read(after_again(numbered_sets, changed, state, 1, 3), 5)
    parts, _ = read(after_again(numbered_sets, changed, state, 3, 1), 5)
    assert whole == parts


def after_again(sets, changed, state, ranks, batch) -> list[ShardDataLoader]:
    loaders = [build([sets[2], sets[0]], rank, ranks, batch, **changed) for rank in range(ranks)]
    for loader in loaders:
        loader.expect(list(state))
        loader.load_state_dict(state)
    return loaders


def test_no_document_is_left_out_when_settings_change(numbered_sets):
    """Every document of a set without weights comes within an epoch, before or after the change."""
    sets, size = numbered_sets[:1], {"seq_len": 128, "lanes": 4, "rule": "static"}
    loader = build(sets, shuffle_bytes=1_200, patch_size=8, **size)
    first = texts_read(loader, 33)
    changed = build(sets, shuffle_bytes=2_400, patch_size=11, change_on_resume=True, **size)
    changed.load_state_dict(loader.state_dict())
    assert changed.stream.lanes == 4 and 50 < len(first) < 200
    for _ in range(30):
        if len(first) < 300:
            first += texts_read_on(changed, 10)
    assert len(first) == 300
    # One epoch, the windows in progress, and what the other lanes read until the last has ended.
    assert sum(first.values()) < 300 * 1.3


def texts_read_on(loader: ShardDataLoader, count: int) -> Counter:
    """The next documents: a loader that is iterated again goes on from a loaded state."""
    found = texts_read(loader, count)
    loader.load_state_dict(loader.state_dict())
    return found


def test_the_number_of_lanes_stays(sets, sequence):
    """Another one is for new runs: the checkpoint's stays, whatever ranks there are."""
    first = build(sets)
    read([first], 30)
    state = first.state_dict()
    for ranks in (1, 2):
        loaders = [
            build(sets, rank, ranks, 2, lanes=4, shuffle_bytes=4_000) for rank in range(ranks)
        ]
        for loader in loaders:
            assert loader.stream.lanes == 4
            loader.expect(list(state))
            assert loader.state_dict().keys() <= state.keys()
            loader.load_state_dict(state)
        assert read(loaders, 20)[0] == together(sequence[30 : 30 + 40 * ranks], 2 * ranks)


def test_a_checkpoint_of_an_earlier_release_is_refused(sets):
    with pytest.raises(ConfigError, match=r"an earlier release, .*exclude_from_loading dataloader"):
        build(sets).expect(["rows"])
    build(sets).expect([])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process is meant
def test_distributed_checkpoints_hold_the_state(sets, sequence, tmp_path):
    loader = build(sets)
    next(iter(loader))
    dcp.save({"dataloader": loader}, checkpoint_id=tmp_path, no_dist=True)
    # A rank of others needs some of the keys.
    resumed = [build(sets, rank, 2) for rank in range(2)]
    for one in resumed:
        dcp.load({"dataloader": one}, checkpoint_id=tmp_path, no_dist=True)
    assert union(one.state_dict() for one in resumed) == loader.state_dict()
    assert read(resumed, 10)[0] == together(sequence[1:21], 2)


def test_a_log_line_says_which_number_of_lanes_suits_the_ranks(sets, caplog):
    build(sets, 0, 8)
    build(sets, 1, 12)
    # The set is too small for more lanes.
    build(sets, 0, 12, lanes=512)
    assert not caplog.messages
    build(sets, 0, 12)
    assert "each of the 12 ranks reads 3.0 times its share" in caplog.text
    assert "a new run reads just its share with --dataloader.lanes 12" in caplog.text


def shard_files(directory) -> list:
    return sorted(directory.glob("shards/*.arrow"))


@pytest.mark.parametrize("damage", ["gone", "cut short", "overwritten", "another", "empty"])
def test_a_damaged_shard_is_named(sets, tmp_path, damage):
    """In the middle of the run, and in the thread that trains."""
    directory = tmp_path / "set"
    shutil.copytree(sets[0], directory)
    victim, other = shard_files(directory)[1:3]
    loader = build([str(directory)], shuffle_bytes=2000)
    batches = iter(loader)
    next(batches)
    if damage == "gone":
        victim.unlink()
    elif damage == "cut short":
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
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
    exhausted = build(sets, infinite=False)
    list(exhausted)
    wait_for_threads()
    closed = iter(build(sets))
    next(closed)
    assert len(prefetching()) == 2  # one makes windows, one makes batches of them
    closed.close()
    wait_for_threads()
    dropped = iter(build(sets))
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
        "--dataloader.shards a,s3://b/c --dataloader.weights 1 2.5 --dataloader.threshold 1.3 "
        "--dataloader.rule combined --dataloader.threshold-add 0.2 --dataloader.max-patch-length 9 "
        "--dataloader.lanes 64 --dataloader.change-on-resume"
    )
    ConfigManager()  # registers torchtitan's own way of writing lists
    job = tyro.cli(Job, args=arguments.split(), default=Job(), registry=custom_registry)
    assert job.dataloader.shards == ["a", "s3://b/c"]
    assert job.dataloader.weights == (1.0, 2.5) and job.dataloader.threshold == 1.3
    assert job.dataloader.rule == "combined" and job.dataloader.threshold_add == 0.2
    assert job.dataloader.max_patch_length == 9 and job.dataloader.lanes == 64
    assert job.dataloader.change_on_resume
