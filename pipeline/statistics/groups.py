"""Statistics by group of documents: by script, and by the value of each metadata column."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Any

import numpy as np

MOST_GROUPS = 256
"""Values of a column that a shard tells apart: those with the most text."""
LONGEST_NAME = 100
"""Characters of a value that groups are told apart by."""
OTHERS = "(others)"
MISSING = "(none)"
"""Documents in which the column is null."""
ENTROPY_UNIT = 2.0**-24
"""Nats; every float16 is a multiple, so that sums in this unit are exact."""


@dataclass
class GroupCounts:
    """Counts over the documents of a group; they add up exactly."""

    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of text."""
    patches: int = 0
    entropy: int = 0
    """Sum over all tokens, in units of ENTROPY_UNIT nats."""

    def __add__(self, other: "GroupCounts") -> "GroupCounts":
        return GroupCounts(
            self.documents + other.documents,
            self.bytes + other.bytes,
            self.patches + other.patches,
            self.entropy + other.entropy,
        )

    @property
    def mean_patch_bytes(self) -> float:
        return self.bytes / self.patches if self.patches else 0.0

    @property
    def mean_entropy(self) -> float:
        """Nats."""
        tokens = self.bytes + 2 * self.documents
        return self.entropy * ENTROPY_UNIT / tokens if tokens else 0.0


Groups = dict[str, GroupCounts]


def count_groups(
    keys: Sequence[str | None], bytes_D: np.ndarray, patches_D: np.ndarray, entropy_D: np.ndarray
) -> Groups:
    """Counts by key.

    Args:
        keys: of each document.
        bytes_D: of text.
        entropy_D: int64, sums over the documents in ENTROPY_UNIT.
    """
    names: dict[str, int] = {}
    place_D = np.array([names.setdefault(_name(key), len(names)) for key in keys], np.intp)
    columns_D = np.stack([np.ones_like(bytes_D), bytes_D, patches_D, entropy_D])
    sums = np.zeros((4, len(names)), np.int64)
    for row, values_D in zip(sums, columns_D, strict=True):
        np.add.at(row, place_D, values_D)
    return {name: GroupCounts(*sums[:, i].tolist()) for name, i in names.items()}


def _name(key: str | None) -> str:
    return MISSING if key is None else key[:LONGEST_NAME]


def add_groups(a: Groups, b: Groups) -> Groups:
    """Groups of both, added where they have the same name."""
    total = dict(a)
    for name, counts in b.items():
        total[name] = total[name] + counts if name in total else counts
    return total


def largest(groups: Groups, most: int = MOST_GROUPS) -> Groups:
    """The groups with the most text, in that order; all others are one group.

    Beyond ``most``, values that do not repeat, as ids don't, are no groups, but others.
    """
    ordered = sorted(groups.items(), key=lambda item: (-item[1].bytes, item[0]))
    kept = dict(item for item in ordered if item[0] != OTHERS)
    if len(kept) <= most:
        return kept | ({OTHERS: groups[OTHERS]} if OTHERS in groups else {})
    shown = dict(islice((item for item in kept.items() if item[1].documents > 1), most))
    rest = (counts for name, counts in groups.items() if name not in shown)
    return shown | {OTHERS: sum(rest, GroupCounts())}


def groups_to_json(groups: Groups) -> dict[str, list[int]]:
    """``{name: [documents, bytes, patches, entropy]}``."""
    return {name: list(astuple(counts)) for name, counts in groups.items()}


def groups_from_json(values: dict[str, Any]) -> Groups:
    return {name: GroupCounts(*counts) for name, counts in values.items()}


def sums_by_document(h_T: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
    """int64: sums of float16 over each document, in ENTROPY_UNIT."""
    if not len(lengths_D):
        return np.zeros(0, np.int64)
    sum_D = np.add.reduceat(h_T.astype(np.float64), lengths_D.cumsum() - lengths_D)
    return (sum_D / ENTROPY_UNIT).astype(np.int64)
