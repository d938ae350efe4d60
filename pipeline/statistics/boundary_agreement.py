"""How well the patches of two patchers agree on the same documents.

A *place* is a token where a patch may start and where the rules decide it: all tokens of a document
but its first ones (BOS and the first byte, for most rules), which start patches whatever the
entropies are and would agree for nothing. A document of b bytes has b places: its bytes but the
first, and EOS. At each place the reference starts a patch or does not, and so does the other
patcher: the four counts of these cases add up, and all figures are functions of them.

For example, the text ``one two`` has seven places. The reference cuts ``one| two`` and the other
``one |two``; both start a patch at EOS. Of two starts each, one is common: precision, recall and F1
are 1/2. Two patchers that start 2 patches at 7 places at random would reach an F1 of 2/7.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.patches import PatchedTokens

NEITHER, OTHER_ALONE, REFERENCE_ALONE, BOTH = range(4)
"""The columns of counts ``[..., 4]``: who starts a patch at a place."""


class Places(NamedTuple):
    """The places of documents laid end to end."""

    at_C: np.ndarray
    """int64: the index of each place among the tokens of all documents."""
    document_C: np.ndarray
    """int64: the document that each place lies in."""

    @classmethod
    def of(cls, lengths_D: np.ndarray, first: int) -> "Places":
        """
        Args:
            lengths_D: int64, tokens of each document.
            first: the first token of a document about which the rules decide.
        """
        document_T = np.repeat(np.arange(len(lengths_D)), lengths_D)
        begins_D = lengths_D.cumsum() - lengths_D
        position_T = np.arange(len(document_T)) - begins_D[document_T]
        at_C = np.flatnonzero(position_T >= first)
        return cls(at_C, document_T[at_C])


def first_decided(forced: Sequence[Collection[int]]) -> int:
    """The first token of a document that no rule starts a patch at, or not, by itself.

    Args:
        forced: such tokens, of each rule (:attr:`model.rules.BoundaryRule.first_starts`).
    """
    return 1 + max(slot for slots in forced for slot in slots)


def cases(reference: PatchedTokens, other: PatchedTokens, places: Places) -> np.ndarray:
    """NEITHER, OTHER_ALONE, REFERENCE_ALONE or BOTH at each place: int64."""
    starts = (_starts(patched)[places.at_C] for patched in (reference, other))
    of_reference, of_other = starts
    case_C: np.ndarray = 2 * of_reference.astype(np.int64) + of_other
    return case_C


def _starts(patched: PatchedTokens) -> np.ndarray:
    lengths_P = patched.patch_lengths_P
    starts_T = np.zeros(int(lengths_P.sum()), bool)
    starts_T[lengths_P.cumsum() - lengths_P] = True
    return starts_T


def count_cases(case_C: np.ndarray, group_C: np.ndarray, groups: int) -> np.ndarray:
    """How often each case occurs in each group: int64 ``[groups, 4]``."""
    return np.bincount(4 * group_C + case_C, minlength=4 * groups).reshape(groups, 4)


def chance_f1(counts_G4: np.ndarray) -> float:
    """The F1 to expect of two patchers that start as many patches each in every group of places, at
    places of the group that they draw; NaN if there is no start.

    Args:
        counts_G4: int64 ``[groups, 4]``, places by case.
    """
    counts = counts_G4[counts_G4.any(axis=1)].astype(np.float64)
    of_reference = counts[:, BOTH] + counts[:, REFERENCE_ALONE]
    of_other = counts[:, BOTH] + counts[:, OTHER_ALONE]
    starts = of_reference.sum() + of_other.sum()
    common = (of_reference * of_other / counts.sum(axis=1)).sum()
    return float(2 * common / starts) if starts else float("nan")


@dataclass(frozen=True)
class Scores:
    """Figures of agreement, of one table of counts or, as arrays, of many. NaN where a figure is
    not defined, as precision is without a start."""

    precision: np.ndarray
    """The share of the other's starts that are the reference's, too."""
    recall: np.ndarray
    """The share of the reference's starts that the other has, too."""
    f1: np.ndarray
    """Their harmonic mean."""
    chance_f1: np.ndarray
    """The F1 of two patchers that start as many patches each at places that they draw."""
    kappa: np.ndarray
    """Cohen's kappa: the agreement about all places beyond that of chance, as a share of what is
    possible. It is 0 for chance and 1 for the same patches."""

    @classmethod
    def of(cls, counts_4: np.ndarray) -> "Scores":
        """
        Args:
            counts_4: ``[..., 4]``, places by case.
        """
        neither, other_alone, reference_alone, both = np.moveaxis(
            counts_4.astype(np.float64), -1, 0
        )
        of_reference, of_other = both + reference_alone, both + other_alone
        places = of_reference + other_alone + neither
        with np.errstate(divide="ignore", invalid="ignore"):
            # Places where one alone starts a patch, if both drew their places.
            by_chance = of_reference * (places - of_other) + of_other * (places - of_reference)
            return cls(
                precision=both / of_other,
                recall=both / of_reference,
                f1=2 * both / (of_reference + of_other),
                chance_f1=2 * of_reference * of_other / (places * (of_reference + of_other)),
                kappa=1 - (other_alone + reference_alone) * places / by_chance,
            )
