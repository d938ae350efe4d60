"""Documents of a shuffle window → rows: which part of which document stands where. Plain numpy.

A row is a sequence of *pieces*. A piece is a run of whole patches of one document: it predicts the
tokens ``a+1 .. b`` of the document (BOS, bytes, EOS) and takes ``b - a + 1`` positions of the row::

    input    x[a]  x[a+1]  ...  x[b-1]  EOS
    label   x[a+1] x[a+2]  ...   x[b]   ignored
    patches   [1] + lengths of the patches that cover a+1 .. b

``x[a]`` is BOS in the first piece of a document: the leading 1 is then the document's own first
patch. In a later piece it is the last token that the piece before predicted, read again as context.
The closing EOS is the document's own if the piece is its last, and a separator otherwise. A model's
documents end at EOS, so pieces of a row never see one another; nothing is predicted after EOS, so
nothing reads it either. BOS is never predicted; every other token of a document is predicted once.

Two things are scarce in a row: positions and patches. Documents with many patches for their length
(*dense* ones) run out of patches first, others of positions; a row of both kinds fills both.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.data.window import Documents

SMALL = 128
"""Of a row, 1 / SMALL is not worth cutting a document for."""


class Rows(NamedTuple):
    """Which pieces make up each row. R rows, N pieces, in the order of the rows."""

    first_R: np.ndarray
    """R + 1 values: the first piece of each row, and N."""
    row_N: np.ndarray
    """The row of each piece."""
    byte_N: np.ndarray
    """Where ``x[a]`` stands in :attr:`Documents.text`; some other byte if it is BOS."""
    tokens_N: np.ndarray
    """Positions that the piece takes."""
    opens_N: np.ndarray
    """Whether it is the first of its document: ``x[a]`` is BOS."""
    closes_N: np.ndarray
    """Whether it is the last of its document: ``x[b]`` is EOS."""
    patch_N: np.ndarray
    """The patch before those that are predicted, the leading 1 of the piece: ends with ``x[a]``."""
    patches_N: np.ndarray
    """Patches of the piece, its leading one included."""

    def __len__(self) -> int:
        return len(self.first_R) - 1


class RowSize(NamedTuple):
    """What there is room for in a row."""

    tokens: int
    patches: int


class _Lines:
    """Two lines of documents, dense and sparse, from whose heads rows are cut.

    Places are counted in patches, all of the dense line before all of the sparse one. A run of a
    line is what lies between two places; a run that begins within a document has one more token and
    patch, its context.
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
        self.small = max(row.tokens // SMALL, 1)
        self.tolerance = row.patches // (2 * SMALL)
        self.share = row.tokens / 2
        """Tokens of the dense line in the last row: the next one will be much the same."""
        self.slope = 0.1
        """Patches more for each token more of the dense line and less of the sparse one."""

    def cut(self) -> tuple[list[int], list[int]]:
        """Where the rows' runs of the dense and of the sparse line begin, and their ends."""
        dense, sparse, end = 0, self.split, len(self.ends)
        cuts: tuple[list[int], list[int]] = ([dense], [sparse])
        while dense < self.split or sparse < end:
            dense, sparse = self._cut_row(dense, sparse, end)
            cuts[0].append(dense)
            cuts[1].append(sparse)
        return cuts

    def _cut_row(self, dense: int, sparse: int, end: int) -> tuple[int, int]:
        """Where the next row ends in both lines."""
        is_start = self.is_start
        context = (dense < self.split and dense not in is_start) + (
            sparse < end and sparse not in is_start
        )
        tokens, patches = self.row.tokens - context, self.row.patches - context
        stop = self._balance(dense, sparse, tokens, patches) if dense < self.split else dense
        stop = self._without_scrap(dense, stop, move=sparse == end)
        if stop > dense:
            tokens -= self._tokens(dense, stop)
            patches -= stop - dense
        if sparse == end:
            return stop, sparse
        reach = self._reach(sparse, tokens, min(sparse + patches, end))
        return stop, self._without_scrap(sparse, reach, move=stop == dense)

    def _tokens(self, place: int, stop: int) -> int:
        return self.ends[stop - 1] - (self.ends[place - 1] if place else 0)

    def _reach(self, place: int, tokens: int, end: int) -> int:
        """How far so many tokens go from a place."""
        before = self.ends[place - 1] if place else 0
        return bisect_right(self.ends, before + tokens, place, end)

    def _balance(self, dense: int, sparse: int, tokens: int, patches: int) -> int:
        """How far the dense line goes in a row that fills both its positions and its patches."""
        ends, split = self.ends, self.split
        # One more patch than there is room for says that there are too many.
        end = min(sparse + patches + 1, len(ends))
        before = ends[dense - 1] if dense else 0
        before_sparse = ends[sparse - 1] if sparse else 0
        most = self._reach(dense, tokens, min(dense + patches, split))
        # The more of the dense line, the fewer patches are left when positions run out. Look for
        # the place where none is: by secants from the last row's, by halves when these are slow.
        low, high, guess = dense, most, self.share
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
        self.share = ends[stop - 1] - before if stop > dense else 0
        return stop

    def _without_scrap(self, place: int, stop: int, *, move: bool) -> int:
        """An earlier stop, if only a scrap of the last document would be cut off by this one.

        Args:
            move: the run must not be empty.
        """
        if stop == len(self.ends) or stop == self.split or stop in self.is_start or stop == place:
            return stop
        start = max(self.starts[bisect_right(self.starts, stop - 1) - 1], place)
        if self._tokens(start, stop) > self.small or (move and start == place):
            return stop
        return start


def pack_rows(
    documents: Documents, draws: np.random.BitGenerator, tokens: int, patches: int | None
) -> tuple[Documents, Rows]:
    """Rows that hold every document once.

    Args:
        draws: what shuffles the documents, and then the rows.
        tokens: positions of a row.
        patches: the most patches of a row; None where documents have no patches.

    Returns:
        The documents with their patches in another order, which is that of the rows' numbers.

    Raises:
        ValueError: a patch has more than ``tokens - 2`` tokens; see
            :func:`train.data.window.cut_patches`.
    """
    lengths_P, patches_D = documents.patch_lengths_P, documents.patches_D
    ends_P: Sequence[int]
    if lengths_P is None or patches_D is None or patches is None:
        # As if each token were a patch, and no document dense: cut anywhere.
        patches_D, row = documents.lengths_D, RowSize(tokens, tokens)
    else:
        row = RowSize(tokens, patches)
        if lengths_P.max(initial=0) > tokens - 2:
            raise ValueError(f"patch_lengths: one is too long for a row of {tokens} tokens")
    order_D = permutation(draws, len(documents.lengths_D))
    # A row begins two documents in the middle more often than not.
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
        # Half the memory if it suffices: fetching it takes longer than the sums.
        dtype = np.int32 if documents.lengths_D.sum() < 2**31 else np.int64
        ends_P = lengths_P.cumsum(dtype=dtype).data
        documents = documents._replace(patch_lengths_P=lengths_P)
    split = int(patches_D[order_D[dense_D]].sum())
    cuts = _Lines(ends_P, start_D.tolist(), split, row).cut()
    place_R = permutation(draws, len(cuts[0]) - 1)
    return documents, _rows(documents, line_D, start_D, ends_P, np.array(cuts), split, place_R)


def _rows(
    documents: Documents,
    line_D: np.ndarray,
    start_D: np.ndarray,
    ends_P: Sequence[int],
    cuts_R: np.ndarray,
    split: int,
    place_R: np.ndarray,
) -> Rows:
    """Cut the runs at the documents' ends.

    Args:
        line_D: the documents in the order of the lines.
        start_D: their first patches.
        cuts_R: where each row's run begins, in both lines, and the ends of these.
        place_R: where each row goes.
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
    return Rows(
        first_R=np.searchsorted(row_N, np.arange(len(place_R) + 1)),
        row_N=row_N,
        byte_N=text_D[line_D][document_N] + context_N - before_N,
        tokens_N=end_N - context_N,
        opens_N=opens_N,
        closes_N=np.isin(stop_N, start_D) | (stop_N == total),
        patch_N=patch_N,
        patches_N=stop_N - patch_N,
    )


def permutation(draws: np.random.BitGenerator, count: int) -> np.ndarray:
    """Made of raw draws, which unlike numpy's own permutations never change with its version."""
    return np.argsort(draws.random_raw(count), kind="stable")
