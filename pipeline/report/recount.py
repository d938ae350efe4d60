"""Counts of shard sets from the shards themselves, on Ray, not from what the manifests say."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import run_stage
from pipeline.corpus.documents import WHOLE_FILE
from pipeline.errors import DamagedShardError
from pipeline.report.set_counts import SetCounts
from pipeline.shards.entries import Shard
from pipeline.shards.format import read_patches
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tables import as_shards, shard_rows
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.statistics.threshold_curve import (
    CUT_THRESHOLDS,
    ThresholdCurve,
    patches_at_thresholds,
)
from pipeline.storage.run_record import MANIFEST


def recompute(name: str, shards: ShardSet, console: Console, num_workers: int | None) -> SetCounts:
    """Count all shards of a set again. Problems of the result name files that are damaged, which
    are left out, and a manifest that disagrees with its shards."""
    counting = _Counting(shards.entries)
    run_stage(
        "counting",
        _count_piece,
        {i: shards.entries[i].bytes for i in counting.waiting},
        (shards.without_entries(), shard_rows(shards.entries)),
        console,
        workers=num_workers,
        receive=counting.receive,
    )
    total = counting.total
    stated, actual = _compared(shards.statistics), _compared(total.statistics)
    if actual != stated and not counting.problems:
        where = shards.output.locate(MANIFEST)
        counting.problems.append(f"{where}: says {stated}; it is {actual}")
    for entry in shards.entries:
        try:
            rejects = shards.shard_rejects(entry)
        except DamagedShardError as error:
            counting.problems.append(str(error))
            continue
        alone = (reject for reject in rejects if reject["position"] != WHOLE_FILE)
        total.summary.reject(reject["reason"] for reject in alone)
    counts = SetCounts.of(name, shards, total.statistics, total.summary, counting.entries)
    return replace(counts, curve=total.curve, problems=counting.problems)


def _compared(statistics: PatchStatistics) -> dict[str, int]:
    """The counts that a manifest and its shards have in common, whether or not the shards hold
    entropies."""
    return {name: getattr(statistics, name) for name in ("documents", "bytes", "patches")}


class _Counting:
    """Adds up what workers counted: in the order of the shards, whichever is counted first, and
    without keeping what is added."""

    def __init__(self, entries: Sequence[Shard]):
        self.total = ShardCounts()
        self.entries = [entry for entry in entries if entry.sha256 is None]
        self.problems: list[str] = []
        self.waiting = deque(i for i, entry in enumerate(entries) if entry.sha256 is not None)
        self._all = entries
        self._early: dict[int, str] = {}

    def receive(self, number: int, message: str) -> None:
        """Add what :func:`_count_piece` returned of a shard."""
        self._early[number] = message
        while self.waiting and self.waiting[0] in self._early:
            number = self.waiting.popleft()
            found = json.loads(self._early.pop(number))
            if "problem" in found:
                self.problems.append(found["problem"])
                continue
            counts = ShardCounts.from_json(found)
            self.total += counts
            self.entries.append(self._all[number].counting(counts.statistics))


@dataclass
class ShardCounts:
    """The counts of a shard; ``+`` appends those of another."""

    statistics: PatchStatistics = field(default_factory=PatchStatistics)
    summary: Summary = field(default_factory=Summary)
    cut_K: np.ndarray | None = None
    """int64: patches at each of CUT_THRESHOLDS; None if no ``max_patch_length`` splits patches."""

    def __add__(self, other: "ShardCounts") -> "ShardCounts":
        known = [cut_K for cut_K in (self.cut_K, other.cut_K) if cut_K is not None]
        cut_K = np.sum(known, axis=0) if known else None
        return ShardCounts(self.statistics + other.statistics, self.summary + other.summary, cut_K)

    @property
    def curve(self) -> ThresholdCurve | None:
        """The curve with the splits of ``max_patch_length``; None if there are no such splits."""
        if self.cut_K is None:
            return None
        return ThresholdCurve(self.statistics.bytes, CUT_THRESHOLDS, self.cut_K)

    def to_json(self) -> dict[str, Any]:
        return {
            "statistics": self.statistics.to_json(),
            "summary": self.summary.to_json(),
            "cut": None if self.cut_K is None else self.cut_K.tolist(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShardCounts":
        return cls(
            PatchStatistics.from_json(values["statistics"]),
            Summary.from_json(values["summary"]),
            None if values["cut"] is None else np.array(values["cut"], np.int64),
        )


def _count_piece(number: int, shared: tuple[ShardSet, pa.RecordBatch], report: Reporter) -> str:
    """Count one shard; returns the counts, or what is wrong with the shard, as JSON."""
    shards, rows = shared
    (entry,) = as_shards(rows.slice(number, 1))
    try:
        return json.dumps(count_shard(shards, entry, report).to_json())
    except DamagedShardError as error:
        return json.dumps({"problem": str(error)})


def count_shard(shards: ShardSet, entry: Shard, report: Any = lambda count: None) -> ShardCounts:
    """Count one shard.

    Raises:
        DamagedShardError: it is missing, not the file that was written, or cannot be read.
    """
    metadata = shards.metadata_columns
    patcher, total = shards.patcher, ShardCounts()
    cuts = patcher.has_threshold and patcher.max_patch_length is not None
    for batch in shards.checked_batches(entry):
        scored = read_patches(batch)
        h_T, lengths_D = scored.entropies_T, scored.lengths_D
        total += ShardCounts(
            PatchStatistics.of(lengths_D, scored.patch_lengths_P, h_T),
            Summary.of(batch, scored, patcher, metadata),
            patches_at_thresholds(patcher, h_T, lengths_D) if cuts and len(h_T) else None,
        )
        report(int(scored.lengths_D.sum()))
    return total
