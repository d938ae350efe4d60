"""Lists of numbers in Arrow columns as arrays: a value per byte of a corpus would be too much to
make a Python object of."""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.row_bytes import VALUE_BYTES

NUMBER_BYTES = 8
"""Bytes of a number, at most."""


def is_list_of_numbers(kind: pa.DataType) -> bool:
    """True for the types of columns that :func:`array_values` takes."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def array_bytes(column: Any) -> np.ndarray:
    """Bytes that each row of such a column takes at most (int64)."""
    counts_R: np.ndarray = np.diff(_offsets(column))
    return VALUE_BYTES + NUMBER_BYTES * counts_R


def array_values(column: Any) -> list[np.ndarray | None]:
    """The lists of such a column as arrays, which share the column's memory; None where there is
    none. A number that is null becomes NaN."""
    offsets_R = _offsets(column)
    first, last = int(offsets_R[0]), int(offsets_R[-1])
    numbers = column.values.slice(first, last - first).to_numpy(zero_copy_only=False)
    edges = (offsets_R - first).tolist()
    missing = column.is_null().to_pylist() if column.null_count else [False] * len(column)
    return [
        None if none else numbers[start:stop]
        for none, start, stop in zip(missing, edges, edges[1:], strict=False)
    ]


def _offsets(column: Any) -> np.ndarray:
    """int64: the places in the column's values at which the rows' lists begin, and the end."""
    if not len(column):
        return np.zeros(1, np.int64)
    offsets: np.ndarray = column.offsets.to_numpy().astype(np.int64)
    return offsets
