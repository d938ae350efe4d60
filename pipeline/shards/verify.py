"""Verification: all shards are read back, and every boundary is recomputed."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipeline.errors import DamagedShardError, PipelineError, translated
from pipeline.patches import recut
from pipeline.shards.entries import Shard, ShardEntry, entry_path, read_entry, shard_path
from pipeline.shards.format import TEXT, read_entropies, read_patches, read_text, read_texts
from pipeline.shards.record_batches import BatchIndex
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tables import BATCHES_FILE, ENTRIES_FILE
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.run_record import MANIFEST


def verify(shards: ShardSet) -> Iterator[str]:
    """Everything that is wrong with the shards: one sentence per problem.

    Checks the hashes of all files and record batches, rows, sums of patch lengths, statistics, that
    entries and manifest agree, and that the boundaries are those that the rule gives for the stored
    entropies.
    """
    total = PatchStatistics()
    try:
        yield from set_problems(shards)
        for shard in shards.entries:
            statistics, problems = verify_shard(shards, shard)
            total += statistics
            yield from problems
    except DamagedShardError as error:
        yield str(error)
        return
    yield from sum_problems(shards, total)


def set_problems(shards: ShardSet) -> Iterator[str]:
    """The problems of a set beside its shards: one sentence per problem.

    Raises:
        DamagedShardError: the entries cannot be read; names their file.
    """
    yield from table_problems(shards)
    yield from _others(shards)


def verify_shard(shards: ShardSet, shard: Shard) -> tuple[PatchStatistics, list[str]]:
    """The statistics that the entry of a shard states, and the problems of the shard.

    Args:
        shards: its set, which may lack its entries.
    """
    try:
        entry = _read_entry(shards, shard)
    except (PipelineError, OSError) as error:
        return PatchStatistics(), [str(error)]
    problems: list[str] = []
    if shard.sha256 is not None:
        where = shards.output.locate(shard.path)
        try:
            for problem in _verify_rows(shards, shard, entry):
                problems.append(f"{where}: {problem}")
        except DamagedShardError as error:
            problems.append(str(error))
    return entry.patch_statistics, problems


def sum_problems(shards: ShardSet, total: PatchStatistics) -> Iterator[str]:
    """
    Args:
        total: the sum of the statistics of all shards.
    """
    if total.to_json() != shards.manifest["statistics"]:
        yield f"{shards.output.locate(MANIFEST)}: statistics are not the sum of the shards'"


def _others(shards: ShardSet) -> Iterator[str]:
    """Files among the shards that are none of them, such as those of another set. Readers of this
    project pass over them, and programs that are given ``shards/*.arrow`` do not."""
    known = {shard.path for shard in shards.entries}
    directory, _, suffix = shard_path("*").partition("*")
    for name in shards.output.names(directory):
        path = f"{directory}{name}"
        if name.endswith(suffix) and path not in known:
            yield f"{shards.output.locate(path)}: is no shard of this set; remove it"


def table_problems(shards: ShardSet) -> Iterator[str]:
    """The problems of the files that hold the entries in columns: one sentence per problem.

    Raises:
        DamagedShardError: one cannot be read; names it.
    """
    if not shards.is_checked:
        return
    tables = {ENTRIES_FILE: shards.manifest["entries"], BATCHES_FILE: shards.manifest["batches"]}
    for name, stated in tables.items():
        where = shards.output.locate(name)
        with translated(where, DamagedShardError), shards.output.open(name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != stated["sha256"]:
            yield f"{where}: is damaged: sha256 is {digest}, {stated['sha256']} was written"


def _read_entry(shards: ShardSet, shard: Shard) -> ShardEntry:
    """The entry of a shard, if it says what the set knows of the shard.

    Raises:
        PipelineError: it does not, or it is damaged; names it.
    """
    where = shards.output.locate(entry_path(shard.name))
    with translated(where, DamagedShardError):
        entry = read_entry(shards.output, shard.name)
        row = entry.row()
        known = replace(row, batches=shard.batches, first_batch=shard.first_batch)
        index = entry.batch_index
    stored = shards.batch_index(shard) if shards.is_checked and shard.sha256 else None
    if known != shard or not _same_index(index, stored):
        raise DamagedShardError(f"{where}: does not say what the set's manifest knows of the shard")
    return entry


def _same_index(a: BatchIndex | None, b: BatchIndex | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.to_json() == b.to_json()


def _verify_rows(shards: ShardSet, shard: Shard, entry: ShardEntry) -> Iterator[str]:
    shards.check_file(shard)
    statistics, summary = PatchStatistics(), Summary()
    index = shards.batch_index(shard)
    for number, batch in enumerate(shards.checked_batches(shard)):
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
        stated = (int(index.rows[number]), int(index.tokens[number]))
        found = (len(lengths_D), int(lengths_D.sum()))
        if shards.is_checked and found != stated:
            yield f"batch {number}: has {found} rows and tokens, its entry says {stated}"
        if shards.has_entropies:
            expected = stored
            if shards.patcher.ends_from != "column":  # which nobody can read again
                ends_T = None if shards.bpe is None else shards.bpe.ends(batch[TEXT].to_pylist())
                texts = read_texts(batch)
                expected = recut(shards.patcher, stored.entropies_T, lengths_D, texts, ends_T)
            if not np.array_equal(expected.patch_lengths_P, stored.patch_lengths_P):
                yield f"batch {number}: boundaries are not those of the stored entropies"
            summary += Summary.of(batch, stored, shards.patcher, shards.metadata_columns)
        statistics += PatchStatistics.of(lengths_D, stored.patch_lengths_P, stored.entropies_T)
    yield from _verify_counts(shards, shard, entry, statistics, summary)


def _verify_counts(
    shards: ShardSet, shard: Shard, entry: ShardEntry, statistics: PatchStatistics, summary: Summary
) -> Iterator[str]:
    """Compare what the rows give with what was recorded of them."""
    recorded = entry.patch_statistics
    if not shards.has_entropies:
        recorded.entropies = np.zeros(0, np.int64)
    if statistics.to_json() != recorded.to_json():
        yield "rows do not give the statistics in the manifest"
    elif shards.has_entropies and shards.manifest.get("summary"):
        yield from _verify_summary(shards, shard, summary)


def _verify_summary(shards: ShardSet, shard: Shard, summary: Summary) -> Iterator[str]:
    """Compare what rows give with the shard's summary; they do not know the rejects' reasons."""
    try:
        stored = shards.output.read_json(shard.summary_path)
        reasons = stored["reasons"]
    except (PipelineError, OSError, KeyError, TypeError) as error:
        yield f"{shard.summary_path} cannot be read: {error}"
        return
    if summary.to_json() | {"reasons": reasons} != stored:
        yield f"rows do not give what {shard.summary_path} says"
