"""Shard sets made directly, without Ray and without a model: for tests of what reads them."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa

from model import Patcher
from model.provenance import EntropyModelIdentity
from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document
from pipeline.patches import patch_stored
from pipeline.shards.entries import ShardEntry, shard_name
from pipeline.shards.format import ipc_options, record_batch, shard_schema
from pipeline.shards.manifest import write_manifest
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.output import OutputDirectory

PATCHER = Patcher(1.0)


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
    entropy_model: EntropyModelIdentity | None = None,
) -> ShardSet:
    """A shard set of documents that are patched at random.

    Args:
        rates: patches a token (of PATCHER), of one document after another, round and round.
        per_batch: documents in a record batch.
        per_shard: record batches in a shard.
        entropy_model: whose entropies the manifest says that these are.
    """
    draw = np.random.default_rng(seed)
    output = OutputDirectory(str(url))
    schema = shard_schema(entropies=entropies)
    entries = []
    rated = list(zip(texts, np.resize(rates, len(texts)).tolist(), strict=True))
    for number, group in enumerate(_in_groups(_in_groups(rated, per_batch), per_shard)):
        entry = ShardEntry(shard_name(0, 0, number), "texts")
        statistics = PatchStatistics()
        with (
            output.committing(entry.path) as path,
            pa.ipc.new_file(str(path), schema, options=ipc_options()) as writer,
        ):
            for batch in group:
                documents = [
                    Document(str(i), str(i), text, ()) for i, (text, _) in enumerate(batch)
                ]
                tokens_T, lengths_D = encode_documents([text for text, _ in batch])
                # Above the threshold of 1 with the probability that is asked for.
                above_T = np.repeat([rate for _, rate in batch], lengths_D)
                h_T = (draw.random(len(tokens_T)) + above_T).astype(np.float16)
                patched = patch_stored(patcher, h_T, lengths_D, tokens_T)
                writer.write_batch(record_batch(documents, patched, schema))
                statistics += PatchStatistics.of(lengths_D, patched.patch_lengths_P, h_T)
        entry.sha256 = hashlib.sha256(output.read(entry.path)).hexdigest()
        entry.statistics = statistics.to_json()
        entry.records, entry.shard_bytes = statistics.documents, len(output.read(entry.path))
        entries.append(entry)
    rule = patcher.to_json()
    provenance: dict[str, object] = {"patcher": rule, "columns": schema.names}
    if entropy_model is not None:
        provenance["entropy_model"] = asdict(entropy_model)
    write_manifest(output, provenance, entries)
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
