"""Ranks without rows go on with empty microbatches until the last one has none."""

import torch
import torch.distributed as dist
from support.shard_sets import write_shards

from train.data import in_step as module
from train.data.dataloader import ShardDataLoader
from train.data.in_step import in_step
from train.data.row_settings import LANES


def test_every_rank_has_as_many_microbatches(tmp_path, monkeypatch):
    """Ranks as iterators that take turns: a rank is told what the others have."""
    write_shards(str(tmp_path), [b"a" * 20 * (1 + i % 7) for i in range(60)], per_batch=1)
    config = ShardDataLoader.Config(shards=[str(tmp_path)], lanes=8, shuffle_bytes=80)
    config.infinite = False
    loaders = [
        config.build(dp_world_size=3, dp_rank=rank, seq_len=64, local_batch_size=2)
        for rank in range(3)
    ]
    assert loaders[0].stream.lanes == 8 != LANES
    alone = [len(list(loader)) for loader in loaders]
    assert len(set(alone)) > 1
    turns = 0

    def all_reduce(found: torch.Tensor, operation: dist.ReduceOp) -> None:
        nonlocal turns
        assert operation == dist.ReduceOp.MAX
        turns += 1
        assert int(found) == (turns <= alone[rank])
        found.fill_(turns <= max(alone))

    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "all_reduce", all_reduce)
    for rank, loader in enumerate(loaders):
        turns = 0
        batches = list(in_step(loader, "cpu"))
        assert len(batches) == max(alone)
        for inputs, labels in batches[alone[rank] :]:
            assert (labels < 0).all() and inputs["patch_lengths"].sum() == 2


def test_one_process(tmp_path):
    write_shards(str(tmp_path), [b"text"] * 9)
    config = ShardDataLoader.Config(shards=[str(tmp_path)], infinite=False)
    loader = config.build(dp_world_size=1, dp_rank=0, seq_len=16, local_batch_size=2)
    assert len(list(in_step(loader, "cpu"))) == len(list(loader)) > 1
