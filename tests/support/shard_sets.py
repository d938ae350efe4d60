"""Shard sets made directly, without Ray and without a model: for tests of what reads them."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow as pa

from model import Patcher
from model.provenance import EntropyModelIdentity
from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document
from pipeline.patches import patch_stored
from pipeline.shards.closing import Closing, make_part
from pipeline.shards.entries import (
    ShardEntry,
    commit_entry,
    entry_path,
    read_entries,
    shard_name,
)
from pipeline.shards.format import read_text, record_batch, shard_schema
from pipeline.shards.record_batches import BatchWriter
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tables import BATCHES_FILE, ENTRIES_FILE, SHARDS_PER_PART
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.checked_json import to_json
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST, RECORD

PATCHER = Patcher(1.0)
PROVENANCE = ("tokenizer", "entropy_model", "patcher", "columns", "sources", "configuration")


def write_shards(
    url: str,
    texts: Sequence[bytes],
    *,
    rates: Sequence[float] = (0.22,),
    per_batch: int = 4,
    per_shard: int = 3,
    entropies: bool = True,
    patcher: Patcher = PATCHER,
    seed: int = 0,
    column: tuple[str, Sequence[str | None]] | None = None,
    entropy_model: EntropyModelIdentity | None = None,
) -> ShardSet:
    """A shard set of documents that are patched at random.

    Args:
        rates: patches a token (of PATCHER), of one document after another, round and round.
        per_batch: documents in a record batch.
        per_shard: record batches in a shard.
        column: a column of metadata, and the value of each document.
        entropy_model: whose entropies the manifest says that these are.
    """
    draw = np.random.default_rng(seed)
    output = OutputDirectory(str(url))
    name, values = column or ("", [])
    schema = shard_schema([name] if column else [], entropies=entropies)
    entries = []
    metadata = [(value,) for value in values] or [()] * len(texts)
    rated = list(zip(texts, np.resize(rates, len(texts)).tolist(), metadata, strict=True))
    for number, group in enumerate(_in_groups(_in_groups(rated, per_batch), per_shard)):
        entry = ShardEntry(shard_name(0, 0, number), "texts")
        statistics = PatchStatistics()
        with output.committing(entry.path) as path, BatchWriter(path, schema) as writer:
            for batch in group:
                documents = [
                    Document(str(i), str(i), text, held) for i, (text, _, held) in enumerate(batch)
                ]
                tokens_T, lengths_D = encode_documents([text for text, _, _ in batch])
                # Above the threshold of 1 with the probability that is asked for.
                above_T = np.repeat([rate for _, rate, _ in batch], lengths_D)
                h_T = (draw.random(len(tokens_T)) + above_T).astype(np.float16)
                patched = patch_stored(patcher, h_T, lengths_D, tokens_T)
                writer.write(record_batch(documents, patched, schema), int(lengths_D.sum()))
                statistics += PatchStatistics.of(lengths_D, patched.patch_lengths_P, h_T)
            entry.describe(writer.close())
        entry.statistics, entry.records = statistics.to_json(), statistics.documents
        commit_entry(output, entry)
        entries.append(entry)
    rule = patcher.to_json()
    provenance: dict[str, object] = {"patcher": rule, "columns": schema.names}
    if entropy_model is not None:
        provenance["entropy_model"] = asdict(entropy_model)
    write_manifest(output, provenance, entries)
    return ShardSet(str(url))


def write_manifest(
    output: OutputDirectory, provenance: Mapping[str, Any], entries: Sequence[ShardEntry]
) -> None:
    """Close a shard set whose entries are at hand."""
    with Closing(output, provenance) as closing:
        for start in range(0, len(entries), SHARDS_PER_PART):
            closing.add(make_part(output, entries[start : start + SHARDS_PER_PART]))


def rewrite(url: str | Path, change: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
    """Write the shards of a set again with other rows, and close it as if they had been patched:
    only what the rows mean is then wrong."""
    shards = ShardSet(str(url))
    output, entries = shards.output, read_entries(shards.output)
    for shard in shards.entries:
        entry = entries[shard.name]
        batches = [] if shard.sha256 is None else list(shards.shard_batches(shard))
        if batches:
            with output.committing(entry.path) as path, BatchWriter(path, shards.schema) as writer:
                for batch in map(change, batches):
                    writer.write(batch, int(read_text(batch)[1].sum()))
                entry.describe(writer.close())
        commit_entry(output, entry)
    provenance = {key: shards.manifest[key] for key in PROVENANCE if key in shards.manifest}
    write_manifest(output, provenance, list(entries.values()))


def as_version_1(url: str | Path) -> ShardSet:
    """Turn a set into what the release before format version 2 would have written."""
    output = OutputDirectory(str(url))
    manifest = output.read_json(MANIFEST)
    entries = [asdict(entry) for entry in read_entries(output).values()]
    for entry in entries:
        del entry["batches"]
        output.write(entry_path(entry["name"]), to_json(entry))
    for table, file in (("entries", ENTRIES_FILE), ("batches", BATCHES_FILE)):
        del manifest[table]
        output.remove(file)
    output.write(MANIFEST, to_json(manifest | {"format_version": 1, "shards": entries}))
    if output.exists(RECORD):
        output.write(RECORD, to_json(output.read_json(RECORD) | {"format_version": 1}))
    return ShardSet(str(url))


def _in_groups(values: list, size: int) -> list[list]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def real_texts(count: int, seed: int = 0) -> list[bytes]:
    """Python's help topics: 0.1 to 50 KB, some of them cut short, some empty; all different."""
    draw = random.Random(seed)
    texts = [text.encode() for _, text in sorted(topics.items())]
    draw.shuffle(texts)
    made = [f"{i}: ".encode() + texts[i % len(texts)] for i in range(count)]
    made = [text[: draw.choice([10, 300, 2000, 10**6])] for text in made]
    return [b"" if i % 17 == 16 else text for i, text in enumerate(made)]
