"""Statistics by group of documents: by script, and by the value of each metadata column."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import islice

import numpy as np

MOST_GROUPS = 256
"""Values of a column that are groups of their own: those with the most text."""
LONGEST_NAME = 100
"""Characters of a value that are compared."""
OTHERS = "(others)"
"""The group of all other values."""
MISSING = "(none)"
"""Documents in which the column is null."""
ENTROPY_UNIT = 2.0**-24
"""Nats; every float16 is a multiple, so that sums in this unit are exact."""


@dataclass
class GroupCounts:
    """Counts over the documents of a group; all of them add up exactly."""

    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of text."""
    patches: int = 0
    entropy: int = 0
    """Sum of the entropies of all tokens, in units of ENTROPY_UNIT nats."""

    def __add__(self, other: "GroupCounts") -> "GroupCounts":
        return GroupCounts(
            self.documents + other.documents,
            self.bytes + other.bytes,
            self.patches + other.patches,
            self.entropy + other.entropy,
        )

    @property
    def mean_patch_bytes(self) -> float:
        """Bytes of text per patch."""
        return self.bytes / self.patches if self.patches else 0.0

    @property
    def mean_entropy(self) -> float:
        """Nats per token."""
        tokens = self.bytes + 2 * self.documents
        return self.entropy * ENTROPY_UNIT / tokens if tokens else 0.0


Groups = dict[str, GroupCounts]
"""Groups by name."""
GroupsRecord = dict[str, list[int]]
"""Groups as JSON: ``{name: [documents, bytes, patches, entropy]}``."""


def count_groups(
    keys: Sequence[str | None], bytes_D: np.ndarray, patches_D: np.ndarray, entropy_D: np.ndarray
) -> Groups:
    """Counts of documents, grouped by key.

    Args:
        keys: the group of each document.
        bytes_D: int64, bytes of each document's text.
        patches_D: int64, patches of each document.
        entropy_D: int64, each document's sum of entropies in ENTROPY_UNIT.
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
    """The groups with the most text, in that order; all others become the group OTHERS.

    A column may have as many values as there are documents, but a summary must stay small. If there
    are more than ``most`` values, those that occur once, as ids do, are never groups of their own:
    they would crowd out the ones that repeat. The sums over all groups stay what they were, and
    doing it twice changes nothing. For example, with ``most`` 2, five sites with 9, 7, 5, 3 and 1
    bytes of text, of which the first has one document, become those with 7 and 5 bytes, and others
    with 13.
    """
    ordered = sorted(groups.items(), key=lambda item: (-item[1].bytes, item[0]))
    named = dict(item for item in ordered if item[0] != OTHERS)
    if len(named) <= most:
        return named | ({OTHERS: groups[OTHERS]} if OTHERS in groups else {})
    shown = dict(islice((item for item in named.items() if item[1].documents > 1), most))
    rest = (counts for name, counts in groups.items() if name not in shown)
    return shown | {OTHERS: sum(rest, GroupCounts())}


def groups_to_json(groups: Groups) -> GroupsRecord:
    return {name: list(astuple(counts)) for name, counts in groups.items()}


def groups_from_json(values: GroupsRecord) -> Groups:
    return {name: GroupCounts(*counts) for name, counts in values.items()}


def sums_by_document(h_T: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
    """Each document's sum of entropies (int64, in ENTROPY_UNIT).

    The sums are exact, so that they do not depend on how documents are put together: a double holds
    every multiple of ENTROPY_UNIT below 2**29 nats, which no document of less than 90 MB reaches.
    """
    if not len(lengths_D):
        return np.zeros(0, np.int64)
    sum_D = np.add.reduceat(h_T.astype(np.float64), lengths_D.cumsum() - lengths_D)
    return (sum_D / ENTROPY_UNIT).astype(np.int64)
