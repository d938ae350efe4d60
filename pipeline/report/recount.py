"""Statistics of shard sets counted again, on Ray: from the shards, not from what manifests say."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from rich.console import Console

from pipeline.cluster.connect import connect
from pipeline.cluster.memory import bound_memory
from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import attempt, new_board, work_off
from pipeline.corpus.documents import WHOLE_FILE
from pipeline.errors import DamagedShardError
from pipeline.report.figures import Counted, described
from pipeline.shards.shard_set import MANIFEST, OWN_COLUMNS, ShardEntry, ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary, scored_rows
from pipeline.statistics.threshold_curve import CUT_THRESHOLDS, ThresholdCurve, cut_patches


def recompute(name: str, shards: ShardSet, console: Console, num_workers: int | None) -> Counted:
    """Count all shards of a set again; files that are damaged are named and left out, and so is a
    manifest named that says otherwise."""
    counting = _Counting(shards.entries)
    if counting.waiting:
        _count_all(counting, shards, console, num_workers)
    total = counting.total
    told, found = (_compared(of) for of in (shards.statistics, total.statistics))
    if found != told and not counting.problems:
        counting.problems.append(f"{shards.output.locate(MANIFEST)}: says {told}; it is {found}")
    for entry in shards.entries:
        try:
            rejects = shards.shard_rejects(entry)
        except DamagedShardError as error:
            counting.problems.append(str(error))
            continue
        alone = (reject for reject in rejects if reject["position"] != WHOLE_FILE)
        total.summary.reject(reject["reason"] for reject in alone)
    counted = described(name, shards, total.statistics, total.summary, counting.entries)
    return replace(counted, curve=total.curve, problems=counting.problems)


def _compared(statistics: PatchStatistics) -> dict[str, int]:
    """What shards have to agree on with their manifest, with entropies in them or without."""
    return {name: getattr(statistics, name) for name in ("documents", "bytes", "patches")}


def _count_all(
    counting: "_Counting", shards: ShardSet, console: Console, num_workers: int | None
) -> None:
    connect(num_workers)
    light = [replace(entry, statistics={}) for entry in shards.entries]
    board = new_board()
    work_off(
        {i: shards.entries[i].statistics["bytes"] for i in counting.waiting},
        {},
        console,
        "counting",
        board,
        _count_shard,
        receive=counting.receive,
        fn_args=(ray.put((shards.light(), light)), board),
        concurrency=num_workers,
    )


class _Counting:
    """Adds up what workers counted: in the order of the shards, whichever is counted first, and
    without keeping what is added."""

    def __init__(self, entries: Sequence[ShardEntry]):
        self.total = ShardCounts()
        self.entries = [entry for entry in entries if entry.sha256 is None]
        self.problems: list[str] = []
        self.waiting = deque(i for i, entry in enumerate(entries) if entry.sha256 is not None)
        self._all = entries
        self._early: dict[int, str] = {}

    def receive(self, number: int, result: str) -> None:
        """What was counted of a shard, or what is wrong with it, as JSON."""
        self._early[number] = result
        while self.waiting and self.waiting[0] in self._early:
            number = self.waiting.popleft()
            found = json.loads(self._early.pop(number))
            if "problem" in found:
                self.problems.append(found["problem"])
                continue
            counts = ShardCounts.from_json(found)
            self.total += counts
            statistics = counts.statistics.to_json()
            self.entries.append(replace(self._all[number], statistics=statistics))


@dataclass
class ShardCounts:
    """What is counted of a shard; ``+`` appends those of another."""

    statistics: PatchStatistics = field(default_factory=PatchStatistics)
    summary: Summary = field(default_factory=Summary)
    cut_K: np.ndarray | None = None
    """Patches at CUT_THRESHOLDS, where ``max_patch_length`` cuts some."""

    def __add__(self, other: "ShardCounts") -> "ShardCounts":
        known = [cut_K for cut_K in (self.cut_K, other.cut_K) if cut_K is not None]
        cut_K = np.sum(known, axis=0) if known else None
        return ShardCounts(self.statistics + other.statistics, self.summary + other.summary, cut_K)

    @property
    def curve(self) -> ThresholdCurve | None:
        """With the cuts of ``max_patch_length``, if there are such."""
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


def _count_shard(row: dict[str, Any], shared: Any, board: Any) -> dict[str, Any]:
    bound_memory()

    def count(number: int, report: Reporter) -> str:
        """What was counted, or what is wrong with the shard, as JSON."""
        shards, entries = ray.get(shared)
        try:
            return json.dumps(count_shard(shards, entries[number], report).to_json())
        except DamagedShardError as error:
            return json.dumps({"problem": str(error)})

    return attempt(row, board, count)


def count_shard(
    shards: ShardSet, entry: ShardEntry, report: Any = lambda count: None
) -> ShardCounts:
    """Count one shard.

    Raises:
        DamagedShardError: it is missing, not the file that was written, or cannot be read.
    """
    metadata = [name for name in shards.manifest["columns"] if name not in OWN_COLUMNS]
    patcher, total = shards.patcher, ShardCounts()
    cuts = patcher.has_threshold and patcher.max_patch_length is not None
    for batch in shards.checked_batches(entry):
        scored = scored_rows(batch)
        h_T, lengths_D = scored.entropies_T, scored.lengths_D
        total += ShardCounts(
            PatchStatistics.of(lengths_D, scored.patch_lengths_P, h_T),
            Summary.of(batch, scored, patcher, metadata),
            cut_patches(patcher, h_T, lengths_D) if cuts and len(h_T) else None,
        )
        report(int(scored.lengths_D.sum()))
    return total
