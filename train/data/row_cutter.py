"""Two lines of documents, dense and sparse ones → rows that fill positions and patches."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

SCRAP_SHARE = 128
"""A piece of less than 1 / SCRAP_SHARE of a row is not worth cutting a document for."""


class RowSize(NamedTuple):
    """The most that a row holds."""

    tokens: int
    patches: int


class RowCutter:
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

    >>> from itertools import accumulate
    >>> ends = list(accumulate([1] * 8 + [3] * 8))
    >>> RowCutter(ends, [0, 8], 8, RowSize(tokens=14, patches=8)).cut()
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
