"""How many patches any threshold gives: counted once, exact, and adding up.

A rule with a threshold compares one number a token with it. Counting how often each number occurs
answers for every threshold how many patches there would be, without reading a document again.
"""

import base64
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import zstandard

from model.patcher import Patcher

VALUES = 1 << 16
"""Values of a float16."""
CUT_THRESHOLDS = np.arange(-16, 90).astype(np.float32) / 16
"""Nats: from where every token starts a patch to where none does, but for large drops."""


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
        """At the same thresholds, of more text."""
        assert np.array_equal(self.thresholds_K, other.thresholds_K)
        return ThresholdCurve(
            self.bytes + other.bytes, self.thresholds_K, self.patches_K + other.patches_K
        )

    @property
    def mean_patch_bytes(self) -> np.ndarray:
        """Bytes of text for each patch; 0 where there is no text."""
        return self.bytes / np.maximum(self.patches_K, 1)

    def closest(self, patch_size: float) -> tuple[float, float] | None:
        """The threshold whose mean patch comes closest to ``patch_size`` bytes (the lower of two),
        and that mean; None if there is nothing to choose from."""
        if not len(self.thresholds_K):
            return None
        best = int(np.abs(self.mean_patch_bytes - patch_size).argmin())
        return float(self.thresholds_K[best]), float(self.mean_patch_bytes[best])

    def thinned(self, points: int) -> "ThresholdCurve":
        """At about so many thresholds, evenly spaced; the first and the last are among them."""
        thresholds = self.thresholds_K
        if not len(thresholds):
            return self
        wanted = np.linspace(thresholds[0], thresholds[-1], points)
        kept = np.unique(np.searchsorted(thresholds, wanted).clip(max=len(thresholds) - 1))
        return ThresholdCurve(self.bytes, thresholds[kept], self.patches_K[kept])


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
        if not patcher.has_threshold:
            patcher = Patcher(0.0)
        # The first slots start a patch, or not, whatever h says of the tokens before them; the last
        # token has no slot after it.
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
        """float32, rising: the thresholds that make a difference, as one above them does not."""
        return _VALUES_V[np.flatnonzero(self.counts_V)]

    def patches(self, thresholds_K: np.ndarray) -> np.ndarray:
        """Patches that each of these thresholds (nats) gives; int64."""
        thresholds_K = np.asarray(thresholds_K, np.float32)  # as Patcher compares
        occurring = np.flatnonzero(self.counts_V)
        above_K = np.searchsorted(_VALUES_V[occurring], thresholds_K, side="right")
        total_V = np.concatenate([[0], self.counts_V[occurring].cumsum()])
        return self.always + total_V[-1] - total_V[above_K]

    def curve(self) -> "ThresholdCurve":
        """At every threshold that makes a difference."""
        values = self.values
        if len(values):
            # Below the lowest value every token that is asked starts a patch.
            lowest = np.nextafter(np.float16(values[0]), np.float16(-np.inf))
            values = np.concatenate([[np.float32(lowest)], values])
        return ThresholdCurve(self.bytes, values, self.patches(values))

    def to_json(self) -> dict[str, Any]:
        """Plain values; the counts as base64 of zstd of little-endian integers from ``first`` on,
        of 4 bytes each or, where that is not enough, 8."""
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
    def from_json(cls, values: dict[str, Any]) -> "ThresholdCounts":
        packed = _decompressor().decompress(base64.b64decode(values["counts"]))
        counts = np.frombuffer(packed, f"<u{values['size']}")
        counts_V = np.zeros(VALUES, np.int64)
        counts_V[values["first"] : values["first"] + len(counts)] = counts
        return cls(values["bytes"], values["always"], counts_V)


def _decompressor() -> zstandard.ZstdDecompressor:
    """One a thread: to make it takes as long as to decompress counts."""
    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor()
    return _of_thread.decompressor


def _compared(patcher: Patcher, h_T: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """What the rule compares with its threshold, as float16, and for which tokens if not all."""
    if patcher.compares == "entropy":
        return h_T, None
    rise_T = np.diff(h_T.astype(np.float32), prepend=np.float32(0))
    if patcher.compares == "both":
        return h_T, rise_T > np.float32(patcher.threshold_add)
    # Rounded up: a float16 threshold lies below the rise exactly if it lies below that.
    rounded_T = rise_T.astype(np.float16)
    low_T = rounded_T < rise_T
    rounded_T[low_T] = np.nextafter(rounded_T[low_T], np.float16(np.inf))
    return rounded_T, None


def cut_patches(patcher: Patcher, h_T: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
    """int64: patches at each of CUT_THRESHOLDS where ``max_patch_length`` cuts some: by cutting
    anew at each, which takes a hundred times as long as counting."""
    h, lengths = torch.from_numpy(h_T), torch.from_numpy(lengths_D)
    rules = (replace(patcher, threshold=float(threshold)) for threshold in CUT_THRESHOLDS)
    return np.array([len(rule.patch_lengths_flat(h, lengths)[0]) for rule in rules], np.int64)


_of_thread = threading.local()
_MINUS_ZERO = 0x8000
_PLACES = np.arange(VALUES, dtype=np.uint16)
# Negative values have the highest bit set, and their other bits fall.
_BITS_V = np.where(_PLACES & 0x8000, _PLACES & 0x7FFF, ~_PLACES)
_VALUES_V = _BITS_V.view(np.float16).astype(np.float32)
"""The float16 values in order, NaNs at both ends."""
