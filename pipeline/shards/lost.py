"""Shards that are lost, found without reading them whole."""

from collections.abc import Iterator, Sequence

import xxhash

from pipeline.shards.entries import Shard
from pipeline.shards.shard_set import ShardSet

READ_TOGETHER = 256
"""Record batches that are looked at together."""


def lost(shards: ShardSet) -> Iterator[str]:
    """A message for each shard whose file is gone, has another size than what was written, or is
    another file.

    Lists the files, and reads the smallest record batch of each to compare it with its hash; format
    version 1 has no hashes.
    """
    sizes = shards.output.sizes("shards")
    whole: list[Shard] = []
    for shard in shards.entries:
        if shard.sha256 is None:
            continue
        where, size = shards.output.locate(shard.path), sizes.get(f"{shard.name}.arrow")
        if size is None:
            yield f"{where}: is missing"
        elif shard.shard_bytes and size != shard.shard_bytes:
            yield f"{where}: has {size:,} bytes, {shard.shard_bytes:,} were written"
        elif shards.is_checked and shard.batches:
            whole.append(shard)
    for first in range(0, len(whole), READ_TOGETHER):
        yield from _swapped(shards, whole[first : first + READ_TOGETHER])


def _swapped(shards: ShardSet, some: Sequence[Shard]) -> Iterator[str]:
    """A message for each of some shards whose smallest record batch is not what was written."""
    indices = [shards.batch_index(shard) for shard in some]
    numbers = [int(index.length.argmin()) for index in indices]
    pairs = list(zip(indices, numbers, strict=True))
    starts = [int(index.offset[n]) for index, n in pairs]
    stops = [int(index.offset[n] + index.length[n]) for index, n in pairs]
    ranges = shards.output.read_ranges([shard.path for shard in some], starts, stops)
    for shard, (index, n), data in zip(some, pairs, ranges, strict=True):
        if index.hash is not None and xxhash.xxh3_64_intdigest(data) != int(index.hash[n]):
            where = shards.output.locate(shard.path)
            yield f"{where}: is another file than was written, or damaged"
