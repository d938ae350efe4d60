"""The documents of a shuffle window in memory: one array for each column, documents end to end."""

from typing import NamedTuple

import numpy as np


class DocumentArrays(NamedTuple):
    """Documents end to end: D documents with P patches in all.

    ``"hi"`` in patches of BOS, ``h`` and ``i`` EOS, then ``"a"`` in patches of BOS and ``a`` EOS,
    is ``text = b"hia"`` (in a window: ``b"\\0hia\\0\\0"``), ``lengths_D = [4, 3]``,
    ``patch_lengths_P = [1, 1, 2, 1, 2]`` and ``patches_D = [3, 2]``.
    """

    text: np.ndarray
    """uint8: UTF-8 bytes of all documents. In a window, one more byte precedes them and two follow,
    because a piece of a row copies BOS and EOS from beside its text and overwrites them."""
    lengths_D: np.ndarray
    """int64: tokens per document, at least 2 (BOS and EOS)."""
    patch_lengths_P: np.ndarray | None
    """Tokens per patch; the first patch of each document has one token. None: no patches."""
    patches_D: np.ndarray | None
    """int64: patches per document."""
    groups_D: np.ndarray | None = None
    """int32: the group that each document is counted in, for validation. None: no groups."""


class WindowBuilder:
    """Copies record batches end to end into the arrays of a window.

    Each batch is copied as it arrives, so the reader can reuse its memory for the next one.
    """

    def __init__(self, tokens: int, longest: int, *, patches: bool):
        """
        Args:
            tokens: expected number; the arrays grow beyond it if need be.
            longest: most tokens per patch; longer patches are split.
            patches: whether the documents have patches.
        """
        self.longest = longest
        self.text = _GrowingArray(tokens + 3, np.uint8)
        self.text.add(np.zeros(1, np.uint8))
        self.lengths_P = _GrowingArray(tokens // 4, np.uint16 if longest < 2**16 else np.int32)
        self.lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
        self.patches = [np.zeros(0, np.int64)] if patches else None
        self.groups: list[np.ndarray] = []

    def add(self, batch: DocumentArrays) -> None:
        """Append documents whose text has no further bytes around it."""
        self.text.add(batch.text)
        self.lengths.append(batch.lengths_D)
        if batch.groups_D is not None:
            self.groups.append(batch.groups_D)
        if self.patches is not None:
            batch = split_long_patches(batch, self.longest)
            assert batch.patch_lengths_P is not None and batch.patches_D is not None
            self.lengths_P.add(batch.patch_lengths_P)
            self.patches.append(batch.patches_D)

    def documents(self) -> DocumentArrays:
        """All documents; to be called once, after the last batch."""
        self.text.add(np.zeros(2, np.uint8))
        lengths_D = np.concatenate(self.lengths)
        groups_D = np.concatenate(self.groups) if self.groups else None
        if self.patches is None:
            return DocumentArrays(self.text.values(), lengths_D, None, None, groups_D)
        patches_D = np.concatenate(self.patches)
        lengths_P = self.lengths_P.values()
        return DocumentArrays(self.text.values(), lengths_D, lengths_P, patches_D, groups_D)


class _GrowingArray:
    """An array that doubles its memory when values no longer fit."""

    def __init__(self, capacity: int, dtype: type):
        self.array: np.ndarray = np.empty(capacity, dtype)
        self.used = 0

    def add(self, values: np.ndarray) -> None:
        stop = self.used + len(values)
        if stop > len(self.array):
            larger = np.empty(2 * stop, self.array.dtype)
            larger[: self.used] = self.values()
            self.array = larger
        self.array[self.used : stop] = values
        self.used = stop

    def values(self) -> np.ndarray:
        return self.array[: self.used]


def split_long_patches(documents: DocumentArrays, longest: int) -> DocumentArrays:
    """Documents whose patches of more than ``longest`` tokens are split.

    With ``longest`` 10 a patch of 25 tokens becomes patches of 10, 10 and 5.
    """
    lengths_P, patches_D = documents.patch_lengths_P, documents.patches_D
    if lengths_P is None or patches_D is None or lengths_P.max(initial=0) <= longest:
        return documents
    parts_P = -(-lengths_P // longest)
    split_lengths = np.full(int(parts_P.sum()), longest, lengths_P.dtype)
    split_lengths[parts_P.cumsum() - 1] = lengths_P - (parts_P - 1) * longest
    document_P = np.repeat(np.arange(len(patches_D)), patches_D)
    patches_D = np.bincount(document_P, parts_P, len(patches_D)).astype(np.int64)
    return documents._replace(patch_lengths_P=split_lengths, patches_D=patches_D)
