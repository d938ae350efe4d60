"""The rows of a record batch as Python values, a few at a time.

Lists of numbers become arrays where they are asked for: a value per byte of a corpus would be too
much to make a Python object of.
"""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.fields import column_of
from pipeline.corpus.headers.limits import MOST_VALUES, STEP_BYTES, most_bytes
from pipeline.corpus.row_bytes import BEYOND, VALUE_BYTES, row_bytes
from pipeline.corpus.values import stored_values, values

NUMBER_BYTES = 8
"""Bytes of a number, at most."""


def batch_rows(
    batch: pa.RecordBatch,
    columns: Sequence[str],
    max_document_bytes: int,
    numbers: Collection[str],
    *,
    plain: bool,
) -> Iterator[dict[str, Any] | str]:
    """Rows as dicts, a few at a time: Python values take more room than Arrow's, and a few bytes of
    a file can stand for many.

    Args:
        plain: no column holds such values.
    """
    for start in range(0, batch.num_rows, 1024):
        piece = batch.slice(start, 1024)
        by_name = {name: column_of(piece, name) for name in columns}
        steps: Iterable[tuple[int, int]] = [(0, piece.num_rows)]
        problems: dict[int, str] = {}
        arrays = {name for name in numbers if _is_list_of_numbers(by_name[name].type)}
        converted: dict[str, Callable[[Any], list[Any]]] = dict.fromkeys(columns, stored_values)
        converted |= {columns[0]: values} | dict.fromkeys(arrays, _array_values)
        if not plain or piece.nbytes > STEP_BYTES:
            sizes = {
                name: _array_bytes(column) if name in arrays else row_bytes(column)
                for name, column in by_name.items()
            }
            problems = _too_long(sizes, columns[0], max_document_bytes, arrays)
            steps = _steps(np.sum(list(sizes.values()), 0), problems)
        for first, last in steps:
            if first in problems:
                yield problems[first]
                continue
            whole = last - first == piece.num_rows
            lists = {
                name: converted[name](column if whole else column.slice(first, last - first))
                for name, column in by_name.items()
            }
            for i in range(last - first):
                yield {name: of_column[i] for name, of_column in lists.items()}


def _too_long(
    sizes: Mapping[str, np.ndarray],
    text: str,
    max_document_bytes: int,
    arrays: Collection[str],
) -> dict[int, str]:
    """By row, what is too long to be made of it; arrays have no more numbers than a text tokens."""
    longest = most_bytes(max_document_bytes) // 8
    problems: dict[int, str] = {}
    for name, sizes_R in sizes.items():
        limit = max_document_bytes + VALUE_BYTES if name == text else longest
        if name in arrays:
            limit = 8 * (max_document_bytes + 2) + VALUE_BYTES
        for row in np.flatnonzero(sizes_R > limit).tolist():
            size = f"{sizes_R[row]:,} bytes"
            if sizes_R[row] >= BEYOND:
                size = f"more than {MOST_VALUES:,} values"
            reason = f"{name!r} holds {size}, and {limit:,} bytes are read at most"
            if name == text:
                reason = f"longer than {max_document_bytes} bytes"
            problems.setdefault(row, f"{reason} (--max-document-bytes)")
    return problems


def _steps(sizes: np.ndarray, alone: Container[int]) -> Iterator[tuple[int, int]]:
    """First and last+1 of neighbouring rows, together of about STEP_BYTES or one row.

    Args:
        alone: rows that are not put together with others.
    """
    first = total = 0
    for i, size in enumerate(sizes.tolist()):
        if i > first and (total + size > STEP_BYTES or i in alone or i - 1 in alone):
            yield first, i
            first = i
            total = 0
        total += size
    if len(sizes):
        yield first, len(sizes)


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    """True for the types of columns that :func:`_array_values` takes."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _array_bytes(column: Any) -> np.ndarray:
    """Bytes that each row of such a column takes at most (int64)."""
    counts_R: np.ndarray = np.diff(_offsets(column))
    return VALUE_BYTES + NUMBER_BYTES * counts_R


def _array_values(column: Any) -> list[np.ndarray | None]:
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
