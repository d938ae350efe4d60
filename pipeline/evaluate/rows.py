"""Windows of many documents → rows of one size. Plain numpy; :mod:`pipeline.evaluate.likelihood`
reads the rows.

A document longer than the context is read in windows that overlap by at least half a context. Each
window becomes a document of a row: BOS, bytes, EOS. Nothing is cut for a row's sake, so that each
token is predicted from the same tokens whatever it shares a row with. Therefore packing is a bin
packing with two sizes: a row has room for so many tokens and so many patches. It is solved by first
fit, the windows that take the largest share of a row first: dense windows, which have many patches
for their length, and sparse ones then fill each other's rows. With rows of 100 tokens and 25
patches, for example::

    windows (tokens, patches)   (50, 16)  (48, 15)  (50, 9)  (49, 8)
    rows                        (50, 16) + (50, 9): 100 and 25;  (48, 15) + (49, 8): 97 and 23
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from model.tokenizer import BOS_ID, EOS_ID, PAD_ID

OPEN_ROWS = 64
"""Rows that may take a further window. They bound the time of the search; only rows that are
almost full are closed."""


class Windows(NamedTuple):
    """Stretches of documents: window w reads ``lengths_W[w]`` tokens from ``start_W[w]`` on."""

    start_W: np.ndarray
    """Index of the window's first token among the tokens of all documents."""
    lengths_W: np.ndarray
    """Tokens of the window, the last of which is only predicted."""
    known_W: np.ndarray
    """Predictions at the window's beginning that are left to the window before."""

    def patches(self, first_P: np.ndarray) -> np.ndarray:
        """int64: patches of each window, with one for its BOS and one for what follows it.

        Args:
            first_P: index of each patch's first token, rising.
        """
        end_W = self.start_W + self.lengths_W
        return np.searchsorted(first_P, end_W) - np.searchsorted(first_P, self.start_W + 2) + 2


def cut_windows(lengths_D: np.ndarray, context: int | None) -> Windows:
    """Windows over documents (BOS + bytes + EOS) laid end to end, in their order.

    The first window of a document predicts its first ``context`` tokens after BOS; each further one
    begins half a context later and predicts what is new to it. So every token is predicted once,
    and with at least half a context before it unless the document has less.

    Args:
        lengths_D: tokens of each document, BOS and EOS included.
        context: tokens that a window predicts at most, 2 or more; None: one window per document.
    """
    predicted_D = lengths_D - 1
    context = context or max(int(predicted_D.max(initial=0)), 2)
    stride = context // 2
    windows_D = 1 + np.maximum(-(-(predicted_D - context) // stride), 0)
    document_W = np.repeat(np.arange(len(lengths_D)), windows_D)
    number_W = np.arange(len(document_W)) - (windows_D.cumsum() - windows_D)[document_W]
    begin_W = number_W * stride
    first_D = lengths_D.cumsum() - lengths_D
    return Windows(
        start_W=first_D[document_W] + begin_W,
        lengths_W=np.minimum(context, predicted_D[document_W] - begin_W) + 1,
        known_W=np.where(number_W > 0, context - stride, 0),
    )


class RowSize(NamedTuple):
    """The room of a row. One patch of it is never used: where tokens are padding, it is theirs."""

    tokens: int
    patches: int


class Plan(NamedTuple):
    """The row of each window."""

    row_W: np.ndarray
    """int64: the number of the window's row."""
    times_R: np.ndarray
    """int64: the row's size as a multiple of the usual one, a power of 2. It is above 1 for a row
    that holds one window which is larger than the usual size."""

    @property
    def computed(self) -> int:
        """Rows of the usual size that cost as much as all rows together."""
        return int(self.times_R.sum())

    def groups(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """All rows, in groups of one size that hold as much as ``rows`` rows of the usual size.

        Yields:
            the numbers of the group's windows, by row; the row of each, counted from the group's
            first; and the size of the rows as a multiple of the usual one.
        """
        order_R = np.argsort(self.times_R, kind="stable")
        rank_R = np.empty_like(order_R)
        rank_R[order_R] = np.arange(len(order_R))
        rank_W = rank_R[self.row_W]
        order_W = np.argsort(rank_W, kind="stable")
        first = 0
        while first < len(order_R):
            times = int(self.times_R[order_R[first]])
            last = int(np.searchsorted(self.times_R[order_R], times, side="right"))
            last = min(last, first + max(rows // times, 1))
            window_W = order_W[slice(*np.searchsorted(rank_W[order_W], (first, last)))]
            yield window_W, rank_W[window_W] - first, times
            first = last


def plan_rows(tokens_W: np.ndarray, patches_W: np.ndarray, size: RowSize) -> Plan:
    """Choose a row for each window; see the module's text.

    Args:
        tokens_W, patches_W: what each window takes of a row.
    """
    usable = RowSize(size.tokens, size.patches - 1)
    share_W = np.maximum(tokens_W / usable.tokens, patches_W / usable.patches)
    times_W = 2 ** np.ceil(np.log2(np.maximum(share_W, 1))).astype(np.int64)
    row_W = np.empty(len(tokens_W), np.int64)
    times_R: list[int] = []
    free_tokens, free_patches, number = np.zeros((3, OPEN_ROWS), np.int64)
    order_W = np.argsort(-share_W, kind="stable").tolist()
    for window, tokens, patches, times in zip(
        order_W,
        tokens_W[order_W].tolist(),
        patches_W[order_W].tolist(),
        times_W[order_W].tolist(),
        strict=True,
    ):
        if times > 1:
            row_W[window] = len(times_R)
            times_R.append(times)
            continue
        fits = (free_tokens >= tokens) & (free_patches >= patches)
        place = int(fits.argmax())
        if not fits[place]:
            place = int(free_tokens.argmin())
            free_tokens[place], free_patches[place] = usable
            number[place] = len(times_R)
            times_R.append(1)
        free_tokens[place] -= tokens
        free_patches[place] -= patches
        row_W[window] = number[place]
    return Plan(row_W, np.array(times_R, np.int64))


class Rows(NamedTuple):
    """R rows, right-padded, and the places where N tokens are predicted."""

    tokens_RT: np.ndarray
    """int32 ids; -1 for padding."""
    patch_lengths_RP: np.ndarray
    """int32, tokens; 0 for padding."""
    lengths_W: np.ndarray
    """int64: tokens of each window, row by row."""
    windows_R: np.ndarray
    """int64: windows of each row."""
    tokens_R: np.ndarray
    """int64: tokens of each row."""
    patches_R: np.ndarray
    """int64: patches of each row."""
    at_N: np.ndarray
    """int64: index of a token, among those of all documents, whose successor is predicted."""
    place_N: np.ndarray
    """int64: where it stands in the rows laid end to end; rising."""


def fill_rows(
    windows: Windows,
    row_W: np.ndarray,
    size: RowSize | None,
    tokens_T: np.ndarray,
    starts_T: np.ndarray | None,
) -> Rows:
    """Write windows into rows.

    Args:
        windows: by row; at least one.
        row_W: the row of each window: 0 to R - 1, rising.
        size: of the rows; None for what their windows need.
        tokens_T: ids of all documents.
        starts_T: marks the tokens that start a patch; None for rows without patches.
    """
    start_W, lengths_W, known_W = windows
    end_W = lengths_W.cumsum()
    begin_W, total = end_W - lengths_W, int(end_W[-1])
    windows_R = np.bincount(row_W)
    stop_R = end_W[windows_R.cumsum() - 1]
    tokens_R = np.diff(stop_R, prepend=0)
    first_R = stop_R - tokens_R
    width = size.tokens if size else int(tokens_R.max())
    # X: the tokens of all windows, end to end.
    number_X = np.arange(total)
    at_X = number_X + np.repeat(start_W - begin_W, lengths_W)
    place_X = number_X + np.repeat(row_W * width - first_R[row_W], lengths_W)
    read_X = tokens_T[at_X]
    read_X[begin_W], read_X[end_W - 1] = BOS_ID, EOS_ID
    tokens_RT = np.full((len(stop_R), width), PAD_ID, np.int32)
    tokens_RT.reshape(-1)[place_X] = read_X
    patches_R, patch_lengths_RP = np.zeros_like(tokens_R), np.zeros((len(stop_R), 0), np.int32)
    if starts_T is not None:
        starts_X = starts_T[at_X]
        starts_X[begin_W] = starts_X[begin_W + 1] = True
        patches_R, patch_lengths_RP = _patches_of_rows(starts_X, first_R, size)
    new_X = number_X - np.repeat(begin_W, lengths_W) >= np.repeat(known_W, lengths_W)
    new_X[end_W - 1] = False
    return Rows(
        tokens_RT=tokens_RT,
        patch_lengths_RP=patch_lengths_RP,
        lengths_W=lengths_W,
        windows_R=windows_R,
        tokens_R=tokens_R,
        patches_R=patches_R,
        at_N=at_X[new_X],
        place_N=place_X[new_X],
    )


def _patches_of_rows(
    starts_X: np.ndarray, first_R: np.ndarray, size: RowSize | None
) -> tuple[np.ndarray, np.ndarray]:
    """The number of patches of each row, and their lengths, padded with 0.

    Args:
        starts_X: marks the tokens that start a patch. A row begins with a window, and a window
            with a patch: no patch lies in two rows.
        first_R: index of each row's first token.
    """
    (first_P,) = starts_X.nonzero()
    before_R = np.searchsorted(first_P, first_R)
    patches_R = np.diff(before_R, append=len(first_P))
    row_P = np.repeat(np.arange(len(first_R)), patches_R)
    room = size.patches if size else int(patches_R.max())
    patch_lengths_RP = np.zeros((len(first_R), room), np.int32)
    column_P = np.arange(len(first_P)) - before_R[row_P]
    patch_lengths_RP[row_P, column_P] = np.diff(first_P, append=len(starts_X))
    return patches_R, patch_lengths_RP
