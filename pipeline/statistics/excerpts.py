"""Examples for people to look at: where the longest patches are, and the shortest.

Patches are counted in tokens and shown as bytes. A document's first patch begins with BOS and its
last one ends with EOS, which are no bytes: the text ``abcd`` in patches of 1, 3 and 2 tokens is
shown as patches of 0, 3 and 1 bytes, ``abc`` and ``d``. An excerpt begins and ends between
characters. Patches that reach beyond it are cut there, and those that lie outside are left out, so
that its patches always join to its text: of ``abcd``, bytes 1 to 4 are ``bc`` and ``d``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TypedDict, cast

import numpy as np

MOST_EXCERPTS = 5
"""Excerpts of each kind."""
LEAST_BYTES = 64
"""Documents with less text are no example of short patches."""
SHOWN_BYTES = 160
"""Bytes of text in an excerpt, at most."""
BEFORE_BYTES = 48
"""Bytes of text shown before the longest patch, if so many precede it."""
LONGEST_ID = 200
"""Characters of an id that are stored."""


class ExcerptRecord(TypedDict):
    """:class:`Excerpt` as JSON."""

    sample_id: str
    position: int
    text: str
    patch_bytes: list[int]
    measure: float


@dataclass
class Excerpt:
    """Some text of a document with its patches."""

    sample_id: str
    position: int
    """Byte of the document's text that the excerpt begins at."""
    text: str
    patch_bytes: list[int]
    """Bytes of each patch within the excerpt; sums to those of ``text``."""
    measure: float
    """Bytes of the document's longest patch, or its bytes per patch: excerpts are sorted by it."""

    def patches(self) -> list[bytes]:
        """The text in patches."""
        cuts = np.concatenate([[0], np.cumsum(self.patch_bytes)]).astype(int).tolist()
        data = self.text.encode()
        return [data[a:b] for a, b in pairwise(cuts)]

    def to_json(self) -> ExcerptRecord:
        return cast(ExcerptRecord, asdict(self))


class DocumentLayout:
    """Documents laid end to end, and where in them text and patches are."""

    def __init__(
        self,
        texts: Sequence[bytes],
        ids: Sequence[str],
        lengths_D: np.ndarray,
        patch_lengths_P: np.ndarray,
        patches_D: np.ndarray,
    ):
        """
        Args:
            texts: UTF-8 text of each document.
            ids: id of each document.
            lengths_D: int64, tokens of each document.
            patch_lengths_P: int64, tokens of each patch.
            patches_D: int64, patches of each document.
        """
        self.texts, self.ids = texts, ids
        self.bytes_D = lengths_D - 2
        self.patches_D = patches_D
        self.first_patch_D = patches_D.cumsum() - patches_D
        # Without BOS, with which a first patch begins, and EOS, with which a last one ends.
        self.patch_bytes_P = patch_lengths_P.copy()
        if len(lengths_D):
            self.patch_bytes_P[self.first_patch_D] -= 1
            self.patch_bytes_P[self.first_patch_D + patches_D - 1] -= 1

    def longest(self) -> list[Excerpt]:
        """Excerpts around the longest patches of documents, at most one per document."""
        if not len(self.texts):
            return []
        longest_D = np.maximum.reduceat(self.patch_bytes_P, self.first_patch_D)
        chosen = [d for d in _first(-longest_D) if longest_D[d]]
        return [self._around_longest(d, float(longest_D[d])) for d in chosen]

    def shortest(self) -> list[Excerpt]:
        """Beginnings of the documents whose patches are shortest on average."""
        mean_D = self.bytes_D / np.maximum(self.patches_D, 1)
        mean_D[self.bytes_D < LEAST_BYTES] = np.inf
        chosen = [d for d in _first(mean_D) if np.isfinite(mean_D[d])]
        return [self.excerpt(d, 0, float(mean_D[d])) for d in chosen]

    def _around_longest(self, d: int, length: float) -> Excerpt:
        first = self.first_patch_D[d]
        sizes = self.patch_bytes_P[first : first + self.patches_D[d]]
        begin = int(sizes[: sizes.argmax()].sum())
        return self.excerpt(d, max(begin - BEFORE_BYTES, 0), length)

    def excerpt(self, d: int, begin: int, measure: float) -> Excerpt:
        """SHOWN_BYTES of document ``d`` from byte ``begin`` on."""
        data = self.texts[d]
        begin, end = _character(data, begin), _character(data, begin + SHOWN_BYTES)
        first = self.first_patch_D[d]
        sizes = self.patch_bytes_P[first : first + self.patches_D[d]]
        edges = np.clip(np.concatenate([[0], sizes.cumsum()]), begin, end)
        shown = np.diff(edges)
        text = data[begin:end].decode()
        return Excerpt(self.ids[d][:LONGEST_ID], begin, text, shown[shown > 0].tolist(), measure)


def _first(key_D: np.ndarray) -> list[int]:
    """Places of the lowest keys, lowest first; equal ones in their order."""
    places: list[int] = np.argsort(key_D, kind="stable")[:MOST_EXCERPTS].tolist()
    return places


def _character(data: bytes, position: int) -> int:
    """The first byte of the character that the byte at ``position`` belongs to."""
    position = min(position, len(data))
    while 0 < position < len(data) and data[position] & 0xC0 == 0x80:
        position -= 1
    return position


def merged(a: list[Excerpt], b: list[Excerpt], *, sign: int) -> list[Excerpt]:
    """The excerpts of both that come first by ``sign * measure``; if equal, those of ``a``."""
    return sorted([*a, *b], key=lambda excerpt: sign * excerpt.measure)[:MOST_EXCERPTS]
