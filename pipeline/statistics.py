"""Patch statistics that can be added up: of a shard, of a file, of a corpus."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

ENTROPY_BIN = 0.02
"""Nats; bin k of the entropy histogram counts ``k * ENTROPY_BIN <= h < (k + 1) * ENTROPY_BIN``."""

LONGEST = 4096


@dataclass
class PatchStatistics:
    """Counts over documents; all of them add up exactly."""

    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of text; BOS and EOS are not counted."""
    tokens: int = 0
    patches: int = 0
    patch_lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Entry k: patches of k tokens; the last one, LONGEST, also counts all longer patches."""
    entropies: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Histogram of entropies in bins of ENTROPY_BIN nats."""

    @classmethod
    def of(
        cls, document_lengths_D: np.ndarray, patch_lengths_P: np.ndarray, h_T: np.ndarray
    ) -> "PatchStatistics":
        """Statistics of documents laid end to end (tokens, tokens, float16 nats)."""
        tokens = int(document_lengths_D.sum())
        return cls(
            documents=len(document_lengths_D),
            bytes=tokens - 2 * len(document_lengths_D),
            tokens=tokens,
            patches=len(patch_lengths_P),
            patch_lengths=np.bincount(np.minimum(patch_lengths_P, LONGEST)),
            entropies=_entropy_histogram(h_T),
        )

    def __add__(self, other: "PatchStatistics") -> "PatchStatistics":
        return PatchStatistics(
            self.documents + other.documents,
            self.bytes + other.bytes,
            self.tokens + other.tokens,
            self.patches + other.patches,
            _add_padded(self.patch_lengths, other.patch_lengths),
            _add_padded(self.entropies, other.entropies),
        )

    @property
    def mean_patch_bytes(self) -> float:
        """Bytes of text for each patch: what ``--target-patch-size`` asks for."""
        return self.bytes / self.patches if self.patches else 0.0

    def patch_length_percentile(self, percent: float) -> int:
        """The smallest length (tokens) that at least ``percent`` % of patches do not exceed."""
        if not self.patches:
            return 0
        reached = np.cumsum(self.patch_lengths) >= self.patches * percent / 100
        return int(np.argmax(reached))

    def to_json(self) -> dict[str, Any]:
        """Plain values; long, thin histograms as ``{value: count}``."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "patches": self.patches,
            "patch_lengths": _sparse(self.patch_lengths),
            "entropies": _sparse(self.entropies),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PatchStatistics":
        histograms = {name: _dense(values[name]) for name in ("patch_lengths", "entropies")}
        return cls(**{**values, **histograms})


def _entropy_histogram(h_T: np.ndarray) -> np.ndarray:
    """Counts by bin; by value first, because there are few float16 values and many entropies."""
    counts = np.bincount(h_T.view(np.uint16))
    (bits,) = np.nonzero(counts)
    values = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    bins = (values / np.float32(ENTROPY_BIN)).astype(int)
    return np.bincount(bins, weights=counts[bits]).astype(np.int64)


def _add_padded(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _sparse(histogram: np.ndarray) -> dict[str, int]:
    return {str(k): int(histogram[k]) for k in np.flatnonzero(histogram)}


def _dense(counts: dict[str, int]) -> np.ndarray:
    histogram = np.zeros(max(map(int, counts), default=-1) + 1, np.int64)
    for value, count in counts.items():
        histogram[int(value)] = count
    return histogram
