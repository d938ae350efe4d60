"""Whether shards are what their manifest says: all is read back, every boundary recomputed."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from model.tokenizer import encode_documents
from pipeline.errors import DamagedShardError
from pipeline.patch.scoring import patch_stored
from pipeline.shards.shard_set import MANIFEST, OWN_COLUMNS, ShardEntry, ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary, scored_rows


def verify(shards: ShardSet) -> Iterator[str]:
    """What is wrong with the shards, if anything: one sentence each.

    Checks sha256, rows, sums of patch lengths, statistics, and that the boundaries are those
    that the rule gives for the stored entropies.
    """
    total = PatchStatistics()
    for entry in shards.entries:
        total += entry.patch_statistics
        if entry.sha256 is None:
            continue
        where = shards.output.locate(entry.path)
        try:
            yield from (f"{where}: {problem}" for problem in _verify_rows(shards, entry))
        except DamagedShardError as error:
            yield str(error)
    if total.to_json() != shards.manifest["statistics"]:
        yield f"{shards.output.locate(MANIFEST)}: statistics are not the sum of the shards'"


def _verify_rows(shards: ShardSet, entry: ShardEntry) -> Iterator[str]:
    found, summary = PatchStatistics(), Summary()
    metadata = [name for name in shards.manifest["columns"] if name not in OWN_COLUMNS]
    for number, batch in enumerate(shards.checked_batches(entry)):
        texts = batch["text"].cast(pa.binary()).to_pylist()
        tokens_T, lengths_D = encode_documents(texts)
        scored = scored_rows(batch)
        for row in np.flatnonzero(scored.lengths_D != lengths_D)[:1]:
            yield (
                f"batch {number} row {row}: patch lengths sum to {scored.lengths_D[row]}, "
                f"the document has {lengths_D[row]} tokens"
            )
            return
        if "entropies" in batch.schema.names:
            if not np.array_equal(np.diff(batch["entropies"].offsets.to_numpy()), lengths_D):
                yield f"batch {number}: not one entropy for each token"
                return
            expected_P, _ = patch_stored(shards.patcher, scored.entropies_T, lengths_D, tokens_T)
            if not np.array_equal(expected_P, scored.patch_lengths_P):
                yield f"batch {number}: boundaries are not those of the stored entropies"
            summary += Summary.of(batch, scored, shards.patcher, metadata)
        found += PatchStatistics.of(lengths_D, scored.patch_lengths_P, scored.entropies_T)
    recorded = entry.patch_statistics
    if "entropies" not in shards.manifest["columns"]:
        recorded.entropies = np.zeros(0, np.int64)
    if found.to_json() != recorded.to_json():
        yield "rows do not give the statistics in the manifest"
    elif "entropies" in shards.manifest["columns"] and shards.manifest.get("summary"):
        kept = shards.output.read_json(entry.summary_path)
        if summary.to_json() | {"reasons": kept["reasons"]} != kept:
            yield f"rows do not give what {entry.summary_path} says"
