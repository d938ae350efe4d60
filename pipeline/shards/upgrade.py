"""Shards of format version 1 as version 2 knows them: their files are the same."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.errors import DamagedShardError
from pipeline.shards.entries import ShardEntry, commit_entry
from pipeline.shards.format import read_text
from pipeline.shards.record_batches import WAY_ON, find_batches
from pipeline.storage.output import OutputDirectory


def with_batches(output: OutputDirectory, entry: ShardEntry, schema: pa.Schema) -> ShardEntry:
    """The entry with the index of its record batches. If it lacks one, because version 1 committed
    it, the shard is read once, and the entry is committed anew: it is then what version 2 would
    have written.

    Raises:
        DamagedShardError: the shard is not the file that was written; names it.
    """
    if entry.sha256 is None or entry.batches is not None:
        return entry
    index = find_batches(output, entry.path, entry.shard_bytes, entry.statistics["tokens"])
    with output.open(entry.path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256:
            raise DamagedShardError(
                f"{output.locate(entry.path)}: sha256 is {digest}, {entry.sha256} was written; "
                f"{WAY_ON}"
            )
        hashes, tokens = [], []
        for offset, length in zip(index.offset.tolist(), index.length.tolist(), strict=True):
            file.seek(offset)
            message = file.read(length)
            hashes.append(xxhash.xxh3_64_intdigest(message))
            batch = pa.ipc.read_record_batch(pa.py_buffer(message), schema)
            tokens.append(int(read_text(batch)[1].sum()))
    index = index._replace(tokens=np.array(tokens, np.int64), hash=np.array(hashes, np.uint64))
    entry = replace(entry, batches=index.to_json())
    commit_entry(output, entry)
    return entry
