"""Statistics that can be added up: those of shards to those of a file or a corpus."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import xxhash

ENTROPY_BIN = 0.02
"""Nats; bin k of the entropy histogram counts ``k * ENTROPY_BIN <= h < (k + 1) * ENTROPY_BIN``."""

LONGEST = 4096
"""Tokens of a patch above which lengths are not told apart."""
LENGTH_BINS = 8
"""Bins of document lengths for each doubling: they are 9 % wide."""
DIGEST_BITS = 128


class PatchStatisticsRecord(TypedDict):
    """:class:`PatchStatistics` as JSON."""

    documents: int
    bytes: int
    tokens: int
    patches: int
    patch_lengths: dict[str, int]
    """Patches by length in tokens; lengths that do not occur are left out."""
    entropies: dict[str, int]
    """Tokens by bin; bins that are empty are left out."""


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
        """Statistics of documents laid end to end.

        Args:
            document_lengths_D: int64, tokens of each document.
            patch_lengths_P: tokens of each patch.
            h_T: float16, nats, one per token; empty if they are not known.
        """
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
        """Bytes of text per patch: what ``--target-patch-size`` asks for."""
        return self.bytes / self.patches if self.patches else 0.0

    def patch_length_percentile(self, percent: float) -> int:
        """The smallest length (tokens) that at least ``percent`` % of patches do not exceed."""
        if not self.patches:
            return 0
        reached = np.cumsum(self.patch_lengths) >= self.patches * percent / 100
        return int(np.argmax(reached))

    def to_json(self) -> PatchStatisticsRecord:
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
    def from_json(cls, values: PatchStatisticsRecord) -> "PatchStatistics":
        return cls(
            values["documents"],
            values["bytes"],
            values["tokens"],
            values["patches"],
            _dense(values["patch_lengths"]),
            _dense(values["entropies"]),
        )


def without_histograms(statistics: PatchStatisticsRecord) -> PatchStatisticsRecord:
    """A copy of the numbers with empty histograms, which are long: workers need no more."""
    return {**statistics, "patch_lengths": {}, "entropies": {}}


@dataclass
class DocumentStatistics:
    """Counts over documents that are not patched yet; all of them add up exactly."""

    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of text."""
    digest: int = 0
    """Sum of the XXH3-128 of all texts modulo 2**128: two collections that hold each text equally
    often, in whatever order, have the same."""
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Entry k: documents whose ``LENGTH_BINS * log2(bytes + 1)``, rounded down, is k."""
    longest: int = 0
    """Bytes of the longest text."""

    @classmethod
    def of(cls, texts_D: pa.LargeBinaryArray) -> "DocumentStatistics":
        """Statistics of texts without nulls."""
        if not len(texts_D):
            return cls()
        _, offsets, data = texts_D.buffers()
        offsets_D = np.frombuffer(offsets, np.int64)[texts_D.offset :][: len(texts_D) + 1]
        lengths_D = np.diff(offsets_D)
        view = memoryview(data if data is not None else b"")
        edges = offsets_D.tolist()
        digests = (xxhash.xxh3_128_intdigest(view[a:b]) for a, b in pairwise(edges))
        return cls(
            documents=len(texts_D),
            bytes=int(lengths_D.sum()),
            digest=sum(digests) % (1 << DIGEST_BITS),
            lengths=np.bincount((LENGTH_BINS * np.log2(lengths_D + 1)).astype(int)),
            longest=int(lengths_D.max()),
        )

    def __add__(self, other: "DocumentStatistics") -> "DocumentStatistics":
        return DocumentStatistics(
            self.documents + other.documents,
            self.bytes + other.bytes,
            (self.digest + other.digest) % (1 << DIGEST_BITS),
            _add_padded(self.lengths, other.lengths),
            max(self.longest, other.longest),
        )

    def same_texts(self, other: "DocumentStatistics") -> bool:
        """True if both count the same texts, each equally often."""
        mine, theirs = ((s.documents, s.bytes, s.digest) for s in (self, other))
        return mine == theirs

    @property
    def mean_bytes(self) -> float:
        """Bytes per document."""
        return self.bytes / self.documents if self.documents else 0.0

    def length_percentile(self, percent: float) -> int:
        """Bytes that at least ``percent`` % of documents do not exceed; up to 9 % too many."""
        if not self.documents:
            return 0
        reached = np.cumsum(self.lengths) >= self.documents * percent / 100
        return min(int(2 ** ((np.argmax(reached) + 1) / LENGTH_BINS) - 1), self.longest)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the histogram as ``{bin: count}``, the digest in hexadecimal digits."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "digest": f"{self.digest:032x}",
            "lengths": _sparse(self.lengths),
            "longest": self.longest,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DocumentStatistics":
        return cls(
            **values | {"digest": int(values["digest"], 16), "lengths": _dense(values["lengths"])}
        )


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
    values = np.array(list(map(int, counts)), np.int64)
    histogram = np.zeros(values.max(initial=-1) + 1, np.int64)
    histogram[values] = list(counts.values())
    return histogram
