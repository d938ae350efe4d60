"""The documents of a shuffle window in memory: one array for each column, documents end to end."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class DocumentArrays(NamedTuple):
    """Documents end to end: D documents with P patches in all.

    ``"hi"`` in patches of BOS, ``h`` and ``i`` EOS, then ``"a"`` in patches of BOS and ``a`` EOS,
    is ``text = b"hia"`` (in a window: ``b"\\0hia\\0\\0"``), ``lengths_D = [4, 3]``,
    ``patch_lengths_P = [1, 1, 2, 1, 2]`` and ``patches_D = [3, 2]``.
    """

    text: np.ndarray
    """uint8: UTF-8 bytes of all documents; a tokenizer's ids are wider. In a window, one more
    precedes them and two follow, because a piece of a row copies BOS and EOS from beside its text
    and overwrites them."""
    lengths_D: np.ndarray
    """int64: tokens per document, at least 2 (BOS and EOS)."""
    patch_lengths_P: np.ndarray | None
    """Tokens per patch; the first patch of each document has one token. None: no patches."""
    patches_D: np.ndarray | None
    """int64: patches per document."""
    groups_D: np.ndarray | None = None
    """int32: the group that each document is counted in, for validation. None: no groups."""


def join_documents(
    batches: Sequence[DocumentArrays], longest: int, *, patches: bool
) -> DocumentArrays:
    """The arrays of a window, from record batches whose text has no further bytes around it.

    Args:
        longest: most tokens per patch; longer patches are split.
        patches: whether the documents have patches.
    """
    around = np.zeros(1, np.uint8)
    text = np.concatenate([around, *(batch.text for batch in batches), around, around])
    lengths_D = np.concatenate([np.zeros(0, np.int64), *(batch.lengths_D for batch in batches)])
    groups = [batch.groups_D for batch in batches if batch.groups_D is not None]
    groups_D = np.concatenate(groups) if groups else None
    if not patches:
        return DocumentArrays(text, lengths_D, None, None, groups_D)
    dtype = np.uint16 if longest < 2**16 else np.int32
    lengths_P, patches_D = [np.zeros(0, dtype)], [np.zeros(0, np.int64)]
    for batch in batches:
        batch = split_long_patches(batch, longest)
        assert batch.patch_lengths_P is not None and batch.patches_D is not None
        lengths_P.append(batch.patch_lengths_P.astype(dtype))
        patches_D.append(batch.patches_D)
    joined = np.concatenate(lengths_P), np.concatenate(patches_D)
    return DocumentArrays(text, lengths_D, *joined, groups_D)


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
