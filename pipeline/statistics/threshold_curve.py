"""How many patches any threshold gives: counted once, exact, and adding up.

A rule with a threshold compares one number per token with it: a patch starts after every token
whose number is above. Counting how often each number occurs tells for every threshold how many
patches there would be, without reading a document again. Numbers are rounded to float16, as
entropies are stored, so that there are 65,536 counts, however much text there is.

The counts stand in the order of the values, from the lowest to the highest, so that the tokens
above a threshold are the counts from some place on. The bits of a float16, read as an integer, do
not have that order: they are a sign and a magnitude. Positive values rise with their bits; negative
ones have the highest bit set and fall as the rest of their bits rises. Setting the highest bit of
the positive ones and inverting all bits of the negative ones gives integers that are ordered as the
values are, which are their places::

    value   bits    place
     -1.0   BC00    43FF    all bits inverted
      0.0   0000    8000    highest bit set
      1.0   3C00    BC00    highest bit set

Minus zero (bits 8000) has the place before that of zero. It compares as zero does, so that it is
counted there: equal texts then have equal counts. NaNs have the places at both ends.

For example, five tokens with entropies ``0.1 2.0 0.3 1.5 0.2`` have two patches whatever the
threshold, at tokens 0 and 1. Token 0 decides about token 1, where there is a patch anyway, and the
last token about one that does not exist: neither is counted. The others are counted at 0.3, 1.5 and
2.0. A threshold of 1.0 has two of them above it and gives four patches; 1.5 gives three.
"""

import base64
import threading
from dataclasses import dataclass, field, replace
from typing import TypedDict, cast

import numpy as np
import zstandard

from model.patcher import Patcher
from pipeline.patches import recut

VALUES = 1 << 16
"""Values of a float16."""
CUT_THRESHOLDS = np.arange(-16, 90).astype(np.float32) / 16
"""Nats. At the lowest a patch starts after every token (by the monotonic rule: after all but drops
of more than a nat), at the highest after none."""


@dataclass
class ThresholdCurve:
    """Patches at some thresholds, exact at each of them."""

    bytes: int
    """UTF-8 bytes of text."""
    thresholds_K: np.ndarray
    """float32, nats, rising."""
    patches_K: np.ndarray
    """int64."""

    def __add__(self, other: "ThresholdCurve") -> "ThresholdCurve":
        """The curve of both texts; the thresholds have to be the same."""
        assert np.array_equal(self.thresholds_K, other.thresholds_K)
        return ThresholdCurve(
            self.bytes + other.bytes, self.thresholds_K, self.patches_K + other.patches_K
        )

    @property
    def mean_patch_bytes(self) -> np.ndarray:
        """Bytes of text per patch, at each threshold; 0 where there is no text."""
        mean_K: np.ndarray = self.bytes / np.maximum(self.patches_K, 1)
        return mean_K

    def closest(self, patch_size: float) -> tuple[float, float] | None:
        """The threshold whose mean patch comes closest to ``patch_size`` bytes (the lower of two),
        and that mean; None if there are no thresholds."""
        if not len(self.thresholds_K):
            return None
        best = int(np.abs(self.mean_patch_bytes - patch_size).argmin())
        return float(self.thresholds_K[best]), float(self.mean_patch_bytes[best])

    def thinned(self, points: int) -> "ThresholdCurve":
        """The curve at about ``points`` of its thresholds, evenly spaced, with the first and the
        last among them."""
        thresholds = self.thresholds_K
        if not len(thresholds):
            return self
        wanted = np.linspace(thresholds[0], thresholds[-1], points)
        chosen = np.unique(np.searchsorted(thresholds, wanted).clip(max=len(thresholds) - 1))
        return ThresholdCurve(self.bytes, thresholds[chosen], self.patches_K[chosen])


class ThresholdCountsRecord(TypedDict):
    """:class:`ThresholdCounts` as JSON."""

    bytes: int
    always: int
    first: int
    """Place of the first count; those before it and after the last are 0."""
    size: int
    """Bytes of each count, 4 or 8."""
    counts: str
    """base64 of zstd of little-endian integers."""


@dataclass
class ThresholdCounts:
    """Tokens by the number that a rule compares with its threshold; see the top of this file.

    The counts are exact at every threshold for the global and combined rules. For the monotonic
    one, which compares a difference of two float16, they are exact at every threshold that is a
    float16. Pieces that ``max_patch_length`` cuts are not counted; rules without a threshold are
    counted as if they were the global one.
    """

    bytes: int = 0
    """UTF-8 bytes of text."""
    always: int = 0
    """Patches that exist whatever the threshold is."""
    counts_V: np.ndarray = field(default_factory=lambda: np.zeros(VALUES, np.int64))
    """int64: tokens by the float16 that the threshold has to lie below for a patch to start after
    them, in the order of the values."""

    @classmethod
    def of(cls, patcher: Patcher, h_T: np.ndarray, lengths_D: np.ndarray) -> "ThresholdCounts":
        """Counts of documents laid end to end.

        Args:
            h_T: stored entropies: float16, nats, one per token.
            lengths_D: int64, tokens of each document, BOS and EOS included.
        """
        if not patcher.has_threshold:
            patcher = Patcher(0.0)
        # The first slots start a patch, or not, whatever h is; no slot follows the last token.
        first_starts = patcher.boundary_rule.first_starts
        first_D = lengths_D.cumsum() - lengths_D
        never = [(first_D + slot - 1)[lengths_D > slot - 1] for slot in first_starts if slot]
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
            always=sum(int((lengths_D > s).sum()) for s, starts in first_starts.items() if starts),
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
        """float32, nats, rising: the numbers that occur. Between two of them, all thresholds give
        the same patches."""
        return cast(np.ndarray, _VALUES_V[np.flatnonzero(self.counts_V)])

    def patches(self, thresholds_K: np.ndarray) -> np.ndarray:
        """Patches that each of these thresholds (nats) gives; int64."""
        thresholds_K = np.asarray(thresholds_K, np.float32)  # as Patcher compares
        occurring = np.flatnonzero(self.counts_V)
        above_K = np.searchsorted(_VALUES_V[occurring], thresholds_K, side="right")
        total_V = np.concatenate([[0], self.counts_V[occurring].cumsum()])
        patches_K: np.ndarray = self.always + total_V[-1] - total_V[above_K]
        return patches_K

    def curve(self) -> "ThresholdCurve":
        """The curve at every threshold where the number of patches changes."""
        values = self.values
        if len(values):
            # Below the lowest value a patch starts after every token that is counted.
            lowest = np.nextafter(np.float16(values[0]), np.float16(-np.inf))
            values = np.concatenate([[np.float32(lowest)], values])
        return ThresholdCurve(self.bytes, values, self.patches(values))

    def to_json(self) -> ThresholdCountsRecord:
        """Plain values; counts have 4 bytes each or, where that is not enough, 8."""
        occurring = np.flatnonzero(self.counts_V)
        first, stop = (int(occurring[0]), int(occurring[-1]) + 1) if len(occurring) else (0, 0)
        counts = self.counts_V[first:stop]
        size = 4 if counts.max(initial=0) < 1 << 32 else 8
        packed = zstandard.compress(counts.astype(f"<u{size}").tobytes(), 9)
        return {
            "bytes": self.bytes,
            "always": self.always,
            "first": first,
            "size": size,
            "counts": base64.b64encode(packed).decode(),
        }

    @classmethod
    def from_json(cls, values: ThresholdCountsRecord) -> "ThresholdCounts":
        packed = _decompressor().decompress(base64.b64decode(values["counts"]))
        counts = np.frombuffer(packed, f"<u{values['size']}")
        counts_V = np.zeros(VALUES, np.int64)
        counts_V[values["first"] : values["first"] + len(counts)] = counts
        return cls(values["bytes"], values["always"], counts_V)


def _decompressor() -> zstandard.ZstdDecompressor:
    """One per thread: making one takes as long as decompressing counts."""
    if not hasattr(_per_thread, "decompressor"):
        _per_thread.decompressor = zstandard.ZstdDecompressor()
    return cast(zstandard.ZstdDecompressor, _per_thread.decompressor)


def _compared(patcher: Patcher, h_T: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The numbers that the rule compares with its threshold, as float16, and a mask of the tokens
    for which it does so; None: for all."""
    if patcher.compares == "entropy":
        return h_T, None
    rise_T = np.diff(h_T.astype(np.float32), prepend=np.float32(0))
    if patcher.compares == "both":
        return h_T, rise_T > np.float32(patcher.threshold_add)
    # Rounded up: a float16 threshold lies below the rise exactly if it lies below the result.
    rounded_T = rise_T.astype(np.float16)
    low_T = rounded_T < rise_T
    rounded_T[low_T] = np.nextafter(rounded_T[low_T], np.float16(np.inf))
    return rounded_T, None


def patches_at_thresholds(patcher: Patcher, h_T: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
    """Patches at each of CUT_THRESHOLDS (int64), those that ``max_patch_length`` cuts included.

    Documents are re-patched at each, which takes a hundred times as long as counting.

    Args:
        h_T: stored entropies: float16, nats, one per token.
        lengths_D: int64, tokens of each document.
    """
    rules = (replace(patcher, threshold=float(threshold)) for threshold in CUT_THRESHOLDS)
    counts = [len(recut(rule, h_T, lengths_D).patch_lengths_P) for rule in rules]
    return np.array(counts, np.int64)


_per_thread = threading.local()
_MINUS_ZERO = 0x8000
_PLACES = np.arange(VALUES, dtype=np.uint16)
_BITS_V = np.where(_PLACES & 0x8000, _PLACES & 0x7FFF, ~_PLACES)
"""The bits of the value at each place."""
_VALUES_V = _BITS_V.view(np.float16).astype(np.float32)
"""The float16 values in order, NaNs at both ends."""
