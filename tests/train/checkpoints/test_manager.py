"""Loading the dataloader's state from a step: of any lanes, and of releases that had none; once."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed.checkpoint as dcp
from support.shard_sets import real_texts, write_shards
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem

from model.checkpoints.files import CheckpointError
from pipeline.errors import ConfigError
from train.checkpoints import collective, steps
from train.checkpoints.manager import Checkpointer
from train.data.dataloader import ShardDataLoader

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    url = str(tmp_path_factory.mktemp("shards"))
    write_shards(url, real_texts(30))
    return url


def build(shards: str, rank: int, ranks: int, lanes: int) -> ShardDataLoader:
    config = ShardDataLoader.Config(shards=[shards], lanes=lanes, shuffle_bytes=500 * lanes)
    return config.build(dp_world_size=ranks, dp_rank=rank, seq_len=256, local_batch_size=1)


@pytest.mark.parametrize("in_hf", [False, True])
def test_initial_weights_may_have_a_relative_path(tmp_path, monkeypatch, in_hf):
    monkeypatch.chdir(tmp_path)
    elsewhere = "hf://f/g" if in_hf else "s3://f/g"
    for path, made in (("a/b", f"{tmp_path}/a/b"), ("/c", "/c"), (elsewhere, elsewhere)):
        config = Checkpointer.Config(initial_load_path=path, initial_load_in_hf=in_hf)
        assert config.initial_load_path == made


def load(loader: ShardDataLoader, step: str) -> None:
    """As torchtitan's manager does it, without a model."""
    manager = object.__new__(Checkpointer)
    manager.enable, manager.states = False, {}
    manager.dcp_load({"dataloader": loader}, step, from_hf=False, from_quantized=False)


def test_a_step_has_the_lanes_that_its_run_began_with(shards, tmp_path):
    saved = build(shards, 0, 1, lanes=8)
    assert saved.stream.lanes == 8
    batches = iter(saved)
    for _ in range(5):
        next(batches)
    dcp.save({"dataloader": saved}, checkpoint_id=tmp_path, no_dist=True)
    states: dict = {}
    for rank in range(3):
        loader = build(shards, rank, 3, lanes=2)
        assert loader.stream.lanes == 2
        load(loader, str(tmp_path))
        assert loader.stream.lanes == 8
        states |= loader.state_dict()
    assert states == saved.state_dict() and json.loads(states["rows"])["rows"] == 5


def test_a_step_of_an_earlier_release(shards, tmp_path):
    dcp.save({"dataloader": {"rows": "{}"}}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(
        ConfigError, match=r"the checkpoint was made by an earlier release, .*finish"
    ):
        load(build(shards, 0, 1, lanes=2), str(tmp_path))


def test_rank_0_reads_the_index_for_all(shards, tmp_path, monkeypatch):
    """And each rank unpickles it once: with many ranks it is long. Ranks come one after another."""
    saved = build(shards, 0, 1, lanes=8)
    dcp.save({"dataloader": saved}, checkpoint_id=tmp_path, no_dist=True)
    opened: list[str] = []
    unpickled: list[int] = []
    broadcast: list[object] = []
    open_file, unpickle = FileSystem.create_stream, steps._IndexUnpickler.load

    def create_stream(self, path, mode):
        opened.append(Path(path).name)
        return open_file(self, path, mode)

    def broadcast_object_list(values: list) -> None:
        if current == 0:
            broadcast[:] = values
        values[:] = broadcast

    monkeypatch.setattr(FileSystem, "create_stream", create_stream)
    monkeypatch.setattr(
        steps._IndexUnpickler, "load", lambda self: unpickled.append(current) or unpickle(self)
    )
    ranks = SimpleNamespace(
        is_initialized=lambda: True,
        get_rank=lambda: current,
        broadcast_object_list=broadcast_object_list,
    )
    monkeypatch.setattr(collective, "dist", ranks)
    for current in range(3):
        load(build(shards, current, 3, lanes=8), str(tmp_path))
    assert opened.count(steps.INDEX) == 1 and len(opened) == 4  # and each rank its states
    assert unpickled == [0, 1, 2]
    (tmp_path / steps.INDEX).unlink()
    for current in range(2):
        with pytest.raises(CheckpointError, match=f"{tmp_path}.*No such file"):
            load(build(shards, current, 2, lanes=8), str(tmp_path))


def test_a_step_with_a_damaged_index(shards, tmp_path):
    step = tmp_path / "checkpoint" / "step-4"
    dcp.save({"dataloader": build(shards, 0, 1, lanes=8)}, checkpoint_id=step, no_dist=True)
    (step / steps.INDEX).write_bytes((step / steps.INDEX).read_bytes()[:-100])
    manager = object.__new__(Checkpointer)
    manager.enable, manager.folder = False, str(step.parent)
    with pytest.raises(CheckpointError, match=f"{step}: .metadata is broken.*; remove it to "):
        manager._last_step()


def test_a_step_behind_the_end_of_the_training_is_refused(tmp_path):
    """There is nothing to train, and a schedule that ends before it has no learning rate there."""
    step = tmp_path / "checkpoint" / "step-6"
    dcp.save({"train_state": {"step": 6}}, checkpoint_id=step, no_dist=True)
    manager = object.__new__(Checkpointer)
    manager.enable, manager.folder, manager.load_only = False, str(step.parent), False
    manager.training_steps, manager.initial_load_path = 5, None
    with pytest.raises(ConfigError, match=rf"--training.steps: 5, but {step} is further; ask for"):
        manager._load()
