"""The correlation of two columns of float16 numbers, however many rows there are.

Spearman's correlation is that of ranks, and equal numbers share the mean of their ranks. There are
only 65,536 float16 values: counting how often each occurs in a column tells the rank of each, so
that a second look at the rows gives the exact correlation without sorting them.
"""

from typing import NamedTuple

import numpy as np

VALUES = 1 << 16
_VALUES_V = np.arange(VALUES, dtype=np.uint16).view(np.float16).astype(np.float64)
"""The float16 values by their bits."""


class Correlation(NamedTuple):
    """Pearson's and Spearman's coefficients; None where a column is constant or empty."""

    pearson: float | None
    spearman: float | None


class Column:
    """The float16 numbers of one column, counted: their mean, and the rank of each value."""

    def __init__(self) -> None:
        self.counts_V = np.zeros(VALUES, np.int64)

    def add(self, x_N: np.ndarray) -> None:
        """Count float16 numbers; none of them is NaN."""
        self.counts_V += np.bincount(_bits(x_N), minlength=VALUES)

    @property
    def mean(self) -> float:
        """NaN if there are no numbers."""
        used = np.flatnonzero(self.counts_V)
        total = self.counts_V[used].sum()
        return float(self.counts_V[used] @ _VALUES_V[used] / total) if total else float("nan")

    def standardised(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The value and the rank of each float16, by its bits, with mean 0 and deviation 1 over the
        column; None if the column is constant or empty."""
        used = np.flatnonzero(self.counts_V)
        if len(used) < 2:
            return None
        used = used[np.argsort(_VALUES_V[used])]
        counts = self.counts_V[used].astype(np.float64)
        rank = counts.cumsum() - (counts - 1) / 2
        return _standardised(used, _VALUES_V[used], counts), _standardised(used, rank, counts)


class RankCorrelation:
    """Both correlations of two columns that were counted before; rows are added part by part."""

    def __init__(self, a: Column, b: Column):
        self._a, self._b = a.standardised(), b.standardised()
        self._rows = int(a.counts_V.sum())
        self._value = self._rank = 0.0

    def add(self, a_N: np.ndarray, b_N: np.ndarray) -> None:
        """Add rows: float16 numbers of both columns."""
        if self._a is None or self._b is None:
            return
        a_bits, b_bits = _bits(a_N), _bits(b_N)
        self._value += float(self._a[0][a_bits] @ self._b[0][b_bits])
        self._rank += float(self._a[1][a_bits] @ self._b[1][b_bits])

    def result(self) -> Correlation:
        """The correlations, once all rows are added."""
        if self._a is None or self._b is None:
            return Correlation(None, None)
        # Rounding may lead beyond 1.
        both = (max(-1.0, min(total / self._rows, 1.0)) for total in (self._value, self._rank))
        return Correlation(*both)


def _bits(x_N: np.ndarray) -> np.ndarray:
    return (x_N + np.float16(0)).view(np.uint16)  # which makes zero of minus zero


def _standardised(used: np.ndarray, x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    centred = x - (counts @ x) / counts.sum()
    of_bits = np.zeros(VALUES)
    of_bits[used] = centred / np.sqrt((counts @ centred**2) / counts.sum())
    return of_bits
