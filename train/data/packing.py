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
that takes the right amount of each kind fills both; :class:`_RowCutter` searches for that amount.
"""

from bisect import bisect_right
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from train.data.window import DocumentArrays

SCRAP_SHARE = 128
"""A piece of less than 1 / SCRAP_SHARE of a row is not worth cutting a document for."""


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


class RowSize(NamedTuple):
    """The most that a row holds."""

    tokens: int
    patches: int


class _RowCutter:
    """Cuts a line of dense documents and a line of sparse ones into rows.

    Both lines lie end to end, the dense one first, and a *place* is the number of patches before
    it. Each row takes a run from the head of the dense line and a run from the head of the sparse
    line. A run that begins within a document needs one more token and one more patch, its context.

    Idea: let a row take x tokens of the dense line and fill its other positions from the sparse
    line. The more dense tokens, the more patches it has, so the number of patches left over falls
    as x grows; a root search finds the x where it is about zero. Rows that follow one another are
    alike, so the search starts at the last row's x and usually ends after one or two steps.

    Invariant: both lines are used up in order and nothing is skipped, so each row's runs begin
    where the last row's ended, and every patch is in exactly one run.

    Example: rows of 14 tokens and 8 patches, a dense document of 8 patches with 1 token each, and a
    sparse one of 8 patches with 3 tokens each. Row 0 takes 5 dense patches and 3 sparse ones:
    5 + 9 = 14 tokens and 5 + 3 = 8 patches. Row 1 begins within both documents, so that context
    takes 2 tokens and 2 patches; 3 dense and 3 sparse patches fill the other 12 tokens and 6
    patches. Row 2 takes what is left, 2 sparse patches.

    >>> ends = np.cumsum([1] * 8 + [3] * 8).tolist()
    >>> _RowCutter(ends, [0, 8], 8, RowSize(tokens=14, patches=8)).cut()
    ([0, 5, 8, 8], [8, 11, 14, 16])

    Rows of sparse patches alone would hold 4 patches, and rows of dense ones would leave 6
    positions empty.
    """

    def __init__(self, ends_P: Sequence[int], starts_D: list[int], split: int, row: RowSize):
        """
        Args:
            ends_P: tokens up to the end of each patch.
            starts_D: places where documents begin, in rising order.
            split: the place where the sparse line begins.
        """
        self.ends, self.starts, self.split = ends_P, starts_D, split
        self.is_start = set(starts_D)
        self.row = row
        self.scrap = max(row.tokens // SCRAP_SHARE, 1)
        self.tolerance = row.patches // (2 * SCRAP_SHARE)
        self.dense_tokens = row.tokens / 2
        """Tokens of the dense line in the last row, the first guess for the next one."""
        self.slope = 0.1
        """Patches that a row gains for each token that it takes from the dense line instead of the
        sparse one, as the last search measured it."""

    def cut(self) -> tuple[list[int], list[int]]:
        """The places where the rows' runs begin in the dense line, and in the sparse line; each
        list ends with the end of its line."""
        dense, sparse, end = 0, self.split, len(self.ends)
        cuts: tuple[list[int], list[int]] = ([dense], [sparse])
        while dense < self.split or sparse < end:
            dense, sparse = self._cut_row(dense, sparse, end)
            cuts[0].append(dense)
            cuts[1].append(sparse)
        return cuts

    def _cut_row(self, dense: int, sparse: int, end: int) -> tuple[int, int]:
        """The places where a row ends that begins at these places of both lines."""
        is_start = self.is_start
        context = (dense < self.split and dense not in is_start) + (
            sparse < end and sparse not in is_start
        )
        tokens, patches = self.row.tokens - context, self.row.patches - context
        stop = self._balance(dense, sparse, tokens, patches) if dense < self.split else dense
        stop = self._avoid_scrap(dense, stop, move=sparse == end)
        if stop > dense:
            tokens -= self._tokens(dense, stop)
            patches -= stop - dense
        if sparse == end:
            return stop, sparse
        reach = self._reach(sparse, tokens, min(sparse + patches, end))
        return stop, self._avoid_scrap(sparse, reach, move=stop == dense)

    def _tokens(self, place: int, stop: int) -> int:
        return self.ends[stop - 1] - (self.ends[place - 1] if place else 0)

    def _reach(self, place: int, tokens: int, end: int) -> int:
        """The last place, at most ``end``, up to which there are at most so many tokens."""
        before = self.ends[place - 1] if place else 0
        return bisect_right(self.ends, before + tokens, place, end)

    def _balance(self, dense: int, sparse: int, tokens: int, patches: int) -> int:
        """The place in the dense line where a row ends that fills both positions and patches.

        The answer stays within ``low .. high``: a stop with patches left over becomes ``low``, and
        one with too many moves ``high`` below it. The guesses are secants, which are good while
        patches per token change little; from the sixth on they are the middle of the interval.
        """
        ends, split = self.ends, self.split
        # One patch more than fits, so that a row with too many patches differs from a full one.
        end = min(sparse + patches + 1, len(ends))
        before = ends[dense - 1] if dense else 0
        before_sparse = ends[sparse - 1] if sparse else 0
        low, high = dense, self._reach(dense, tokens, min(dense + patches, split))
        guess = self.dense_tokens
        last_size = last_left = 0
        for attempt in range(40):
            stop = bisect_right(ends, before + int(guess), low, high)
            size = ends[stop - 1] - before if stop > dense else 0
            reach = bisect_right(ends, before_sparse + tokens - size, sparse, end)
            left = patches - (stop - dense) - (reach - sparse)
            if abs(left) <= self.tolerance:
                break
            low, high = (stop, high) if left > 0 else (low, stop - 1)
            if low >= high:
                stop = low
                break
            if attempt and (left - last_left) * (last_size - size) > 0:
                self.slope = (left - last_left) / (last_size - size)
            last_size, last_left = size, left
            guess = size + left / self.slope if attempt < 6 else ends[(low + high) // 2] - before
        self.dense_tokens = ends[stop - 1] - before if stop > dense else 0
        return stop

    def _avoid_scrap(self, place: int, stop: int, *, move: bool) -> int:
        """``stop``, or the start of the document that it cuts, if the run would take no more than
        a scrap of that document.

        Args:
            move: the run must not become empty.
        """
        if stop == len(self.ends) or stop == self.split or stop in self.is_start or stop == place:
            return stop
        start = max(self.starts[bisect_right(self.starts, stop - 1) - 1], place)
        if self._tokens(start, stop) > self.scrap or (move and start == place):
            return stop
        return start


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
    cuts = _RowCutter(ends_P, start_D.tolist(), split, row).cut()
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
        cuts_R: [2, R + 1]; see :meth:`_RowCutter.cut`.
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
