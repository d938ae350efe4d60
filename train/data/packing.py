"""Documents of a shuffle window → rows: which part of which document goes into which row.

Plain numpy; :mod:`train.data.filling` writes the rows. A row is a sequence of *pieces*. A piece is
a run of whole patches of one document: it predicts the tokens ``a+1 .. b`` of the document (BOS,
bytes, EOS) and takes ``b - a + 1`` positions of the row::

    input    x[a]  x[a+1]  ...  x[b-1]  EOS
    label   x[a+1] x[a+2]  ...   x[b]   ignored
    patches   [1] + lengths of the patches that cover a+1 .. b

In the first piece of a document ``x[a]`` is BOS, and the leading 1 is the document's own first
patch. In a later piece ``x[a]`` is *context*: the last token that the piece before predicted, read
again. The closing EOS is the document's own in its last piece, and a separator otherwise. A model
treats EOS as the end of a document, so the pieces of a row never see one another; nothing is
predicted after EOS, so nothing reads it either. BOS is never predicted; every other token of a
document is predicted exactly once.

A row has a limited number of positions and a limited number of patches. *Dense* documents, which
have many patches for their length, run out of patches first, sparse ones out of positions. A row
that takes the right amount of each kind fills both; :mod:`train.data.row_cutter` searches for that
amount.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from train.data.row_cutter import RowCutter, RowSize
from train.data.window import DocumentArrays


class Column(IntEnum):
    """The numbers that describe a piece: columns of :attr:`Rows.pieces_NF`."""

    BYTE = 0
    """Index of ``x[a]`` in :attr:`DocumentArrays.text`. BOS is not in the text: the index is then
    that of the byte before the document's first."""
    TOKENS = 1
    """Positions that the piece takes."""
    PATCH = 2
    """Index of the patch that ends with ``x[a]``, which the leading 1 of the piece stands for."""
    PATCHES = 3
    """Patches of the piece, including the leading 1."""
    OPENS = 4
    """1 if the piece is the first of its document: ``x[a]`` is BOS. Otherwise 0."""
    CLOSES = 5
    """1 if the piece is the last of its document: ``x[b]`` is EOS. Otherwise 0."""
    DOCUMENT = 6
    """Number of the piece's document in the window."""


class Rows(NamedTuple):
    """The pieces of each row: R rows with N pieces in all, in the order of the rows."""

    first_R: np.ndarray
    """int64, R + 1 values: the number of each row's first piece, and N."""
    pieces_NF: np.ndarray
    """``[N, 7]``, int32 (int64 if a window holds 2 GB): one line of :class:`Column` per piece, so
    that a row is one slice."""

    def __len__(self) -> int:
        return len(self.first_R) - 1

    def pieces(self, row: int) -> np.ndarray:
        """The lines of one row's pieces."""
        return self.pieces_NF[self.first_R[row] : self.first_R[row + 1]]


class PackedWindow(NamedTuple):
    """Documents of a shuffle window, and the rows that they are packed into."""

    documents: DocumentArrays
    """``patch_lengths_P`` is in the order that ``Column.PATCH`` counts in."""
    rows: Rows


def pack_rows(
    documents: DocumentArrays, bits: np.random.BitGenerator, tokens: int, patches: int | None
) -> PackedWindow:
    """Pack documents into rows that hold each document once.

    Args:
        bits: random bits that shuffle first the documents, then the rows.
        tokens: positions per row.
        patches: most patches per row; None where documents have no patches.

    Raises:
        ValueError: a patch has more than ``tokens - 2`` tokens; see
            :func:`train.data.window.split_long_patches`.
    """
    lengths_P, patches_D = documents.patch_lengths_P, documents.patches_D
    ends_P: Sequence[int]
    if lengths_P is None or patches_D is None or patches is None:
        # Rows may end at any token: each token counts as a patch, and no document is dense.
        patches_D, row = documents.lengths_D, RowSize(tokens, tokens)
    else:
        row = RowSize(tokens, patches)
        if lengths_P.max(initial=0) > tokens - 2:
            raise ValueError(f"patch_lengths: one is too long for a row of {tokens} tokens")
    order_D = permutation(bits, len(documents.lengths_D))
    # Most rows begin within two documents, so two tokens and two patches go to context.
    dense_D = (patches_D * (tokens - 2) > documents.lengths_D * (row.patches - 2))[order_D]
    line_D = np.concatenate([order_D[dense_D], order_D[~dense_D]])
    stop_D = patches_D[line_D].cumsum()
    start_D = stop_D - patches_D[line_D]
    total = int(stop_D[-1]) if len(stop_D) else 0
    if lengths_P is None:
        ends_P = range(1, total + 1)
    else:
        first_D = patches_D.cumsum() - patches_D
        spans = zip(first_D[line_D].tolist(), (first_D + patches_D)[line_D].tolist(), strict=True)
        lengths_P = np.concatenate([lengths_P[:0], *(lengths_P[a:b] for a, b in spans)])
        # The search waits for memory, so the smaller type is faster where it suffices.
        dtype = np.int32 if documents.lengths_D.sum() < 2**31 else np.int64
        ends_P = lengths_P.cumsum(dtype=dtype).data
        documents = documents._replace(patch_lengths_P=lengths_P)
    split = int(patches_D[order_D[dense_D]].sum())
    cuts = RowCutter(ends_P, start_D.tolist(), split, row).cut()
    place_R = permutation(bits, len(cuts[0]) - 1)
    rows = _rows(documents, line_D, start_D, ends_P, np.array(cuts), split, place_R)
    return PackedWindow(documents, rows)


def _rows(
    documents: DocumentArrays,
    line_D: np.ndarray,
    start_D: np.ndarray,
    ends_P: Sequence[int],
    cuts_R: np.ndarray,
    split: int,
    place_R: np.ndarray,
) -> Rows:
    """Cut the runs into pieces at the documents' ends, and put the rows into their final order.

    Args:
        line_D: numbers of the documents, in the order of the lines.
        start_D: the place where each of these begins.
        cuts_R: [2, R + 1]; see :meth:`RowCutter.cut`.
        place_R: the final number of each row.
    """
    total = len(ends_P)
    piece_N = np.unique(np.concatenate([cuts_R.ravel(), start_D]))
    piece_N = piece_N[piece_N < total]
    stop_N = np.append(piece_N[1:], total)
    row_N = np.where(
        piece_N < split,
        np.searchsorted(cuts_R[0], piece_N, side="right"),
        np.searchsorted(cuts_R[1], piece_N, side="right"),
    )
    row_N = place_R[row_N - 1]
    order_N = np.argsort(row_N, kind="stable")
    piece_N, stop_N, row_N = piece_N[order_N], stop_N[order_N], row_N[order_N]
    document_N = np.searchsorted(start_D, piece_N, side="right") - 1
    opens_N = piece_N == start_D[document_N]
    patch_N = piece_N - ~opens_N
    if isinstance(ends_P, range):
        end_N, context_N, before_N = stop_N, patch_N, start_D[document_N]
    else:
        ends = np.asarray(ends_P)
        end_N, context_N = ends[stop_N - 1], ends[patch_N] - 1
        before_N = ends[start_D[document_N]] - 1
    text_D = (documents.lengths_D - 2).cumsum() - (documents.lengths_D - 2)
    columns = (
        text_D[line_D][document_N] + context_N - before_N,
        end_N - context_N,
        patch_N,
        stop_N - patch_N,
        opens_N,
        np.isin(stop_N, start_D) | (stop_N == total),
        line_D[document_N],
    )
    dtype = np.int32 if documents.lengths_D.sum() < 2**31 else np.int64
    pieces_NF = np.stack(columns, axis=1).astype(dtype)
    return Rows(np.searchsorted(row_N, np.arange(len(place_R) + 1)), pieces_NF)


def permutation(bits: np.random.BitGenerator, count: int) -> np.ndarray:
    """A random order of ``count`` things, the same with every release of numpy.

    The order is that of one raw 64-bit draw per thing. numpy keeps the raw draws of a generator the
    same, but may change its own ``permutation``, and a resumed run would then read other rows.

    >>> (np.random.PCG64(0).random_raw(5) // 10**17).tolist()
    [117, 49, 7, 3, 150]
    >>> permutation(np.random.PCG64(0), 5).tolist()
    [3, 2, 1, 0, 4]
    """
    return np.argsort(bits.random_raw(count), kind="stable")
