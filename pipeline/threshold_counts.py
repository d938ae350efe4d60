"""How many patches any threshold gives: counted once, exact, and adding up.

A rule with a threshold compares one number a token with it. Counting how often each number occurs
answers for every threshold how many patches there would be, without reading a document again.
"""

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.patcher import THRESHOLD_RULES, Patcher

VALUES = 1 << 16
"""Values of a float16."""


@dataclass
class ThresholdCounts:
    """What tokens hold against the threshold of a rule, by value.

    For the global and combined rules exact at every threshold; for the monotonic one, where a
    difference of two float16 is compared, at every threshold that a float16 can be. What
    ``max_patch_length`` cuts besides is not counted; rules without a threshold are counted as if
    they were the global one.
    """

    bytes: int = 0
    """UTF-8 bytes of text."""
    always: int = 0
    """Patches that there are whatever the threshold."""
    counts_V: np.ndarray = field(default_factory=lambda: np.zeros(VALUES, np.int64))
    """Tokens by the float16 that the threshold has to lie below for a patch to start after them;
    in the order of the values."""

    @classmethod
    def of(cls, patcher: Patcher, h_T: np.ndarray, lengths_D: np.ndarray) -> "ThresholdCounts":
        """Counts of documents laid end to end.

        Args:
            h_T: stored entropies: float16, nats, one a token.
            lengths_D: tokens of each document, BOS and EOS included.
        """
        # Patches start at tokens 0 and 1 whatever h says; the last token has no slot after it.
        published = patcher.published and patcher.rule in ("monotonic", "combined")
        free = 1 + published + (published and patcher.rule == "combined")
        first_D = lengths_D.cumsum() - lengths_D
        never = [(first_D + position)[lengths_D > position] for position in range(free)]
        never_N = np.unique(np.concatenate([*never, first_D + lengths_D - 1]))
        key_T, compared_T = _compared(patcher, h_T)
        bits_T = key_T.view(np.uint16)
        counts_B = np.bincount(bits_T if compared_T is None else bits_T[compared_T], None, VALUES)
        if compared_T is not None:
            never_N = never_N[compared_T[never_N]]
        counts_B -= np.bincount(bits_T[never_N], minlength=VALUES)
        counts_B[0] += counts_B[_MINUS_ZERO]
        counts_B[_MINUS_ZERO] = 0
        return cls(
            bytes=int(lengths_D.sum()) - 2 * len(lengths_D),
            always=int(np.minimum(lengths_D, 3 if published else 2).sum()),
            counts_V=counts_B[_BITS_V],
        )

    def __add__(self, other: "ThresholdCounts") -> "ThresholdCounts":
        return ThresholdCounts(
            self.bytes + other.bytes,
            self.always + other.always,
            self.counts_V + other.counts_V,
        )

    @property
    def values(self) -> np.ndarray:
        """float32, rising: the thresholds that make a difference, as one above them does not."""
        return _VALUES_V[np.flatnonzero(self.counts_V)]

    def patches(self, thresholds_K: np.ndarray) -> np.ndarray:
        """Patches that each of these thresholds (nats) gives; int64."""
        thresholds_K = np.asarray(thresholds_K, np.float32)  # as Patcher compares
        occurring = np.flatnonzero(self.counts_V)
        above_K = np.searchsorted(_VALUES_V[occurring], thresholds_K, side="right")
        total_V = np.concatenate([[0], self.counts_V[occurring].cumsum()])
        return self.always + total_V[-1] - total_V[above_K]

    def mean_patch_bytes(self, thresholds_K: np.ndarray) -> np.ndarray:
        """Bytes of text for each patch at each of these thresholds; 0 where there is no text."""
        return self.bytes / np.maximum(self.patches(thresholds_K), 1)

    def threshold_for(self, patch_size: float) -> float | None:
        """The threshold whose mean patch comes closest to ``patch_size`` bytes; the lower of two.

        None if there is nothing to choose from.
        """
        values = self.values
        if not len(values):
            return None
        # Below the lowest value every token that is asked starts a patch.
        candidates = np.concatenate([[np.nextafter(np.float16(values[0]), -np.inf)], values])
        distance = np.abs(self.mean_patch_bytes(candidates) - patch_size)
        return float(candidates[distance.argmin()])

    def to_json(self) -> dict[str, Any]:
        """Plain values; the counts as base64 of zlib of little-endian int64 from ``first`` on."""
        occurring = np.flatnonzero(self.counts_V)
        first, stop = (int(occurring[0]), int(occurring[-1]) + 1) if len(occurring) else (0, 0)
        packed = zlib.compress(self.counts_V[first:stop].astype("<i8").tobytes(), 6)
        return {
            "bytes": self.bytes,
            "always": self.always,
            "first": first,
            "counts": base64.b64encode(packed).decode(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ThresholdCounts":
        counts = np.frombuffer(zlib.decompress(base64.b64decode(values["counts"])), "<i8")
        counts_V = np.zeros(VALUES, np.int64)
        counts_V[values["first"] : values["first"] + len(counts)] = counts
        return cls(values["bytes"], values["always"], counts_V)


def _compared(patcher: Patcher, h_T: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """What the rule compares with its threshold, as float16, and for which tokens if not all."""
    if patcher.rule not in THRESHOLD_RULES or patcher.rule == "global":
        return h_T, None
    rise_T = np.diff(h_T.astype(np.float32), prepend=np.float32(0))
    if patcher.rule == "combined":
        return h_T, rise_T > np.float32(patcher.threshold_add)
    # Rounded up: a float16 threshold lies below the rise exactly if it lies below that.
    rounded_T = rise_T.astype(np.float16)
    low_T = rounded_T < rise_T
    rounded_T[low_T] = np.nextafter(rounded_T[low_T], np.float16(np.inf))
    return rounded_T, None


_MINUS_ZERO = 0x8000
_PLACES = np.arange(VALUES, dtype=np.uint16)
# Negative values have the highest bit set, and their other bits fall.
_BITS_V = np.where(_PLACES & 0x8000, _PLACES & 0x7FFF, ~_PLACES)
_VALUES_V = _BITS_V.view(np.float16).astype(np.float32)
"""The float16 values in order, NaNs at both ends."""
