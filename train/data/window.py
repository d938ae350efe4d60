"""The documents of a shuffle window, laid end to end in memory."""

from typing import NamedTuple

import numpy as np


class Documents(NamedTuple):
    """Documents laid end to end."""

    text: np.ndarray
    """uint8: the UTF-8 bytes of all documents, one more byte before and two after them."""
    lengths_D: np.ndarray
    """int64: tokens of each document; all at least 2."""
    patch_lengths_P: np.ndarray | None
    """Tokens; the first patch of each document has one token. None: cut anywhere."""
    patches_D: np.ndarray | None
    """int64: patches of each document."""


class Collector:
    """Lays record batches end to end, copying each as it comes: its memory serves the next one."""

    def __init__(self, tokens: int, longest: int, *, patches: bool):
        """
        Args:
            tokens: about how many will come.
            longest: patches above so many tokens are cut.
            patches: whether there are any.
        """
        self.longest = longest
        self.text = _Growing(tokens + 3, np.uint8)
        self.text.add(np.zeros(1, np.uint8))
        self.lengths_P = _Growing(tokens // 4, np.uint16 if longest < 2**16 else np.int32)
        self.lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
        self.patches = [np.zeros(0, np.int64)] if patches else None

    def add(self, part: Documents) -> None:
        """Documents whose text has no bytes around it."""
        self.text.add(part.text)
        self.lengths.append(part.lengths_D)
        if self.patches is not None:
            part = cut_patches(part, self.longest)
            assert part.patch_lengths_P is not None and part.patches_D is not None
            self.lengths_P.add(part.patch_lengths_P)
            self.patches.append(part.patches_D)

    def documents(self) -> Documents:
        self.text.add(np.zeros(2, np.uint8))
        lengths_D = np.concatenate(self.lengths)
        if self.patches is None:
            return Documents(self.text.values(), lengths_D, None, None)
        patches_D = np.concatenate(self.patches)
        return Documents(self.text.values(), lengths_D, self.lengths_P.values(), patches_D)


class _Growing:
    """An array that is added to."""

    def __init__(self, capacity: int, dtype: type):
        self.array: np.ndarray = np.empty(capacity, dtype)
        self.used = 0

    def add(self, values: np.ndarray) -> None:
        stop = self.used + len(values)
        if stop > len(self.array):
            more = np.empty(2 * stop, self.array.dtype)
            more[: self.used] = self.values()
            self.array = more
        self.array[self.used : stop] = values
        self.used = stop

    def values(self) -> np.ndarray:
        return self.array[: self.used]


def cut_patches(documents: Documents, longest: int) -> Documents:
    """Documents whose patches above ``longest`` tokens are cut into such pieces and a rest."""
    lengths_P, patches_D = documents.patch_lengths_P, documents.patches_D
    if lengths_P is None or patches_D is None or lengths_P.max(initial=0) <= longest:
        return documents
    pieces_P = -(-lengths_P // longest)
    cut = np.full(int(pieces_P.sum()), longest, lengths_P.dtype)
    cut[pieces_P.cumsum() - 1] = lengths_P - (pieces_P - 1) * longest
    document_P = np.repeat(np.arange(len(patches_D)), patches_D)
    patches_D = np.bincount(document_P, pieces_P, len(patches_D)).astype(np.int64)
    return documents._replace(patch_lengths_P=cut, patches_D=patches_D)
