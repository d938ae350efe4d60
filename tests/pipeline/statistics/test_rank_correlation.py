"""Correlations from counts of values, against scipy-like definitions on the whole columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics.rank_correlation import Column, RankCorrelation

VALUES = st.floats(0, 6, width=16)


def counted(x: np.ndarray, y: np.ndarray, parts: int):
    columns = (Column(), Column())
    pieces = list(zip(np.array_split(x, parts), np.array_split(y, parts), strict=True))
    for piece in pieces:
        for column, values in zip(columns, piece, strict=True):
            column.add(values)
    both = RankCorrelation(*columns)
    for piece in pieces:
        both.add(*piece)
    return both.result(), columns


def ranks(x: np.ndarray) -> np.ndarray:
    """Mean ranks of equal values, by definition."""
    return np.array([((x < value).sum() + (x <= value).sum() + 1) / 2 for value in x])


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=60), st.integers(1, 3))
def test_correlations_are_those_of_the_columns(rows, parts):
    x, y = np.array(rows, np.float16).T
    result, columns = counted(x, y, parts)
    assert columns[0].mean == pytest.approx(float(x.astype(float).mean()))
    if len(set(x.tolist())) < 2 or len(set(y.tolist())) < 2:
        assert result == (None, None)
        return
    x, y = x.astype(float), y.astype(float)
    assert result.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert result.spearman == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1], abs=1e-9)


def test_minus_zero_is_zero():
    x = np.array([-0.0, 0.0, 1.0, 2.0], np.float16)
    result, _ = counted(x, np.abs(x), 1)
    assert result.pearson == pytest.approx(1) and result.spearman == pytest.approx(1)


def test_nothing_correlates_with_nothing():
    result, columns = counted(np.zeros(0, np.float16), np.zeros(0, np.float16), 1)
    assert result == (None, None) and np.isnan(columns[0].mean)
