"""The part of a report on a shard beyond its counts; summaries of many shards add up.

A summary is made while its shard is written, and stored in ``summaries/NAME.json``; the manifest
has the sum. A report on any number of shards then reads one file.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import pyarrow as pa

from model.patcher import Patcher
from pipeline.patches import PatchedTokens
from pipeline.statistics.excerpts import DocumentLayout, Excerpt, ExcerptRecord, merged
from pipeline.statistics.groups import (
    OTHERS,
    Groups,
    GroupsRecord,
    add_groups,
    count_groups,
    groups_from_json,
    groups_to_json,
    largest,
    sums_by_document,
)
from pipeline.statistics.threshold_curve import ThresholdCounts, ThresholdCountsRecord
from pipeline.statistics.writing_systems import script_of

MOST_REASONS = 32
"""Reasons for rejects that are told apart."""


class SummaryRecord(TypedDict):
    """:class:`Summary` as JSON."""

    thresholds: ThresholdCountsRecord
    scripts: GroupsRecord
    columns: dict[str, GroupsRecord]
    longest: list[ExcerptRecord]
    shortest: list[ExcerptRecord]
    reasons: dict[str, int]


@dataclass
class Summary:
    """A summary of documents in their order; ``+`` appends the documents of another."""

    thresholds: ThresholdCounts = field(default_factory=ThresholdCounts)
    scripts: Groups = field(default_factory=dict)
    columns: dict[str, Groups] = field(default_factory=dict)
    """By metadata column, then by value."""
    longest: list[Excerpt] = field(default_factory=list)
    """Around the longest patches, longest first."""
    shortest: list[Excerpt] = field(default_factory=list)
    """Documents with the shortest patches on average, shortest first."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejects by reason; numbers in a reason are left out."""

    @classmethod
    def of(
        cls,
        batch: pa.RecordBatch,
        patched: PatchedTokens,
        patcher: Patcher,
        metadata: Sequence[str],
    ) -> "Summary":
        """The summary of a batch of a shard's rows.

        Args:
            patched: the same documents, with the entropies that the rows may lack.
            metadata: the batch's columns to group by.
        """
        texts = batch["text"].cast(pa.binary()).to_pylist()
        lengths_D, h_T, patch_lengths_P, patches_D = patched
        layout = DocumentLayout(
            texts, batch["sample_id"].to_pylist(), lengths_D, patch_lengths_P, patches_D
        )
        known = len(h_T) > 0  # rows that are read again may have no entropies
        entropy_D = sums_by_document(h_T, lengths_D) if known else np.zeros_like(lengths_D)
        counted = (lengths_D - 2, patches_D, entropy_D)
        return cls(
            thresholds=ThresholdCounts.of(patcher, h_T, lengths_D) if known else ThresholdCounts(),
            scripts=count_groups([script_of(text) for text in texts], *counted),
            columns={name: count_groups(batch[name].to_pylist(), *counted) for name in metadata},
            longest=layout.longest(),
            shortest=layout.shortest(),
        )

    def __add__(self, other: "Summary") -> "Summary":
        names = [*self.columns, *(name for name in other.columns if name not in self.columns)]
        return Summary(
            self.thresholds + other.thresholds,
            add_groups(self.scripts, other.scripts),
            {
                name: add_groups(self.columns.get(name, {}), other.columns.get(name, {}))
                for name in names
            },
            merged(self.longest, other.longest, sign=-1),
            merged(self.shortest, other.shortest, sign=1),
            self.reasons + other.reasons,
        )

    def reject(self, reasons: Iterable[str]) -> None:
        """Count rejects."""
        self.reasons.update(re.sub(r"\d+", "…", reason)[:200] for reason in reasons)

    def to_json(self) -> SummaryRecord:
        """Plain values; the largest groups and the most frequent reasons by name, the others as
        one."""
        return {
            "thresholds": self.thresholds.to_json(),
            "scripts": groups_to_json(largest(self.scripts)),
            "columns": {k: groups_to_json(largest(v)) for k, v in self.columns.items()},
            "longest": [excerpt.to_json() for excerpt in self.longest],
            "shortest": [excerpt.to_json() for excerpt in self.shortest],
            "reasons": _most_common(self.reasons),
        }

    @classmethod
    def from_json(cls, values: SummaryRecord) -> "Summary":
        return cls(
            ThresholdCounts.from_json(values["thresholds"]),
            groups_from_json(values["scripts"]),
            {name: groups_from_json(groups) for name, groups in values["columns"].items()},
            [Excerpt(**excerpt) for excerpt in values["longest"]],
            [Excerpt(**excerpt) for excerpt in values["shortest"]],
            Counter(values["reasons"]),
        )


def _most_common(reasons: Counter[str]) -> dict[str, int]:
    ordered = sorted(reasons.items(), key=lambda item: (item[0] == OTHERS, -item[1], item[0]))
    rest = sum(count for _, count in ordered[MOST_REASONS:])
    named = dict(ordered[:MOST_REASONS])
    return named | ({OTHERS: named.get(OTHERS, 0) + rest} if rest else {})
