"""Ranks that read different numbers of microbatches, kept in step to the last one.

A loader that stops after an epoch stops at another microbatch on each rank, because lanes differ in
length. A model that is spread over ranks (FSDP) needs all of them for each forward pass.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from train.data.dataloader import ShardDataLoader
from train.data.microbatches import Microbatch


def in_step(loader: ShardDataLoader, device: str) -> Iterator[Microbatch]:
    """Yield the loader's microbatches, then empty ones until no rank has any left.

    All ranks have to iterate together: each microbatch costs an all-reduce of one number.

    Args:
        device: of the tensors that ranks exchange.
    """
    batches = iter(loader)
    while True:
        batch = next(batches, None)
        if not _any_rank(batch is not None, device):
            return
        yield loader.empty_batch() if batch is None else batch


def _any_rank(value: bool, device: str) -> bool:
    """True if the value is true on any rank."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(int(value), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)
