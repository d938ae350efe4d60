"""Verification: all shards are read back, and every boundary is recomputed."""

from collections.abc import Iterator

import numpy as np

from pipeline.errors import DamagedShardError, PipelineError
from pipeline.patches import recut
from pipeline.shards.entries import ShardEntry
from pipeline.shards.format import read_entropies, read_patches, read_text, read_texts
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.run_record import MANIFEST


def verify(shards: ShardSet) -> Iterator[str]:
    """Everything that is wrong with the shards: one sentence per problem.

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
    statistics, summary = PatchStatistics(), Summary()
    for number, batch in enumerate(shards.checked_batches(entry)):
        try:
            stored = read_patches(batch)
            _, lengths_D = read_text(batch)
            counts_D = read_entropies(batch)[1] if shards.has_entropies else lengths_D
        except (KeyError, ValueError) as error:
            yield f"batch {number}: {error}"
            return
        for row in np.flatnonzero(stored.lengths_D != lengths_D)[:1]:
            yield (
                f"batch {number} row {row}: patch lengths sum to {stored.lengths_D[row]}, "
                f"the document has {lengths_D[row]} tokens"
            )
            return
        if not np.array_equal(counts_D, lengths_D):
            yield f"batch {number}: not one entropy for each token"
            return
        if shards.has_entropies:
            expected = recut(shards.patcher, stored.entropies_T, lengths_D, read_texts(batch))
            if not np.array_equal(expected.patch_lengths_P, stored.patch_lengths_P):
                yield f"batch {number}: boundaries are not those of the stored entropies"
            summary += Summary.of(batch, stored, shards.patcher, shards.metadata_columns)
        statistics += PatchStatistics.of(lengths_D, stored.patch_lengths_P, stored.entropies_T)
    recorded = entry.patch_statistics
    if not shards.has_entropies:
        recorded.entropies = np.zeros(0, np.int64)
    if statistics.to_json() != recorded.to_json():
        yield "rows do not give the statistics in the manifest"
    elif shards.has_entropies and shards.manifest.get("summary"):
        yield from _verify_summary(shards, entry, summary)


def _verify_summary(shards: ShardSet, entry: ShardEntry, summary: Summary) -> Iterator[str]:
    """Compare what rows give with the shard's summary; they do not know the rejects' reasons."""
    try:
        stored = shards.output.read_json(entry.summary_path)
        reasons = stored["reasons"]
    except (PipelineError, OSError, KeyError, TypeError) as error:
        yield f"{entry.summary_path} cannot be read: {error}"
        return
    if summary.to_json() | {"reasons": reasons} != stored:
        yield f"rows do not give what {entry.summary_path} says"
