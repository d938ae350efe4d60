"""The published data loader on an export in its layout (docs/published-format.md): the files that
it looks for, and the documents that a rank gets. Written from that description.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

CHUNK = re.compile(r"(?P<corpus>.+)\.chunk\.[0-9]+\.jsonl")


def documents_of_rank(
    source: Path, preprocessed: Path, model: str, rank: int, ranks: int
) -> Iterator[dict[str, Any]]:
    """The rows that one rank reads, in order.

    Args:
        source: directory of the source, below the loader's ``root_dir``; chunks are the files there
            with a chunk's name, whose text is not read.
        preprocessed: the loader's ``preprocess_dir``.
        model: the loader's ``entropy_model_name``.
    """
    chunks = sorted(path for path in source.iterdir() if CHUNK.fullmatch(path.name))
    assert chunks, f"no chunks in {source}"
    assert len(chunks) >= ranks or ranks % len(chunks) == 0
    readers = max(ranks // len(chunks), 1)
    chunk, reader = chunks[rank // readers], rank % readers
    named = CHUNK.fullmatch(chunk.name)
    assert named is not None
    rows = 0
    for shard in shards_of(chunk.name, preprocessed / named["corpus"] / model):
        for row in read(shard):
            if rows % readers == reader:
                yield row
            rows += 1


def shards_of(chunk: str, directory: Path) -> list[Path]:
    """The shards of a chunk in the order of their numbers."""
    shards = [path for path in directory.glob("*.arrow") if path.name.startswith(f"{chunk}.shard_")]
    assert shards, f"no shards of {chunk} in {directory}"
    for shard in shards:
        mark = shard.with_name(shard.name + ".complete")
        assert mark.exists() and not mark.stat().st_size
    return sorted(shards, key=lambda path: int(path.stem.rpartition("_")[2]))


def read(shard: Path) -> list[dict[str, Any]]:
    """The rows of a shard, whose columns have the names and types that the loader expects."""
    table = pa.ipc.open_file(shard).read_all()
    assert table.schema.names == ["sample_id", "text", "entropies"]
    assert table.schema.types == [pa.string(), pa.string(), pa.list_(pa.float16())]
    assert not any(field.nullable for field in table.schema)
    return table.to_pylist()
