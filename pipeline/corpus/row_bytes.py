"""Bytes that the rows of Arrow columns take as Python values, found without making them.

Arrow can state the same value for many rows: dictionaries, run ends, views and views of lists refer
to it. A row is therefore as large as what it refers to, and rows are made a few at a time. For
example, 1000 rows of a dictionary with one string of 2 MB are 2 GB.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.headers.limits import MOST_VALUES

VALUE_BYTES = 64
"""Bytes of a Python value beside its content, about."""
TEXTS = (pa.binary(), pa.string(), pa.large_binary(), pa.large_string())
VIEWS = (pa.binary_view(), pa.string_view())
BEYOND = 1 << 50
"""Stands for the bytes of a row that holds more than MOST_VALUES values."""


def is_plain(kind: pa.DataType) -> bool:
    """True for a type whose rows have their bytes to themselves, and do not hold many values."""
    if pa.types.is_struct(kind):
        return all(is_plain(field.type) for field in kind)
    is_shared = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) or kind in VIEWS
    return not (is_shared or kind.num_fields or isinstance(kind, pa.BaseExtensionType))


def row_bytes(column: pa.Array) -> np.ndarray:
    """Bytes of each row (int64), about; an array for all types, of no more than some thousand rows.

    A column that holds very many values is halved until a row with more than MOST_VALUES of them is
    alone; such a row has BEYOND bytes.
    """
    kind, rows = column.type, len(column)
    if isinstance(kind, pa.BaseExtensionType):
        return row_bytes(column.storage)
    if rows > MOST_VALUES:
        return _halves(column)
    if pa.types.is_dictionary(kind):
        return _of_dictionary(column)
    if pa.types.is_run_end_encoded(kind):
        return _of_runs(column)
    if pa.types.is_fixed_size_binary(kind):
        return np.full(rows, VALUE_BYTES + kind.byte_width)
    if kind in VIEWS:
        # A view has 16 bytes, of which the first four are the length.
        return VALUE_BYTES + _numbers(column, np.dtype("<i4"), 4)[::4].clip(0).astype(np.int64)
    if kind in TEXTS:
        offset = np.dtype("<i4" if kind in TEXTS[:2] else "<i8")
        return VALUE_BYTES + np.diff(_numbers(column, offset, more=1)).astype(np.int64)
    if pa.types.is_struct(kind):
        fields = (row_bytes(column.field(i)) for i in range(kind.num_fields))
        return sum(fields, np.full(rows, VALUE_BYTES))
    if pa.types.is_union(kind):  # its values are somewhere in its columns
        largest = (row_bytes(column.field(i)) for i in range(kind.num_fields))
        return np.full(rows, sum(int(sizes.max(initial=VALUE_BYTES)) for sizes in largest))
    if kind.num_fields:
        return _of_lists(column)
    return np.full(rows, VALUE_BYTES)


def _numbers(column: pa.Array, dtype: np.dtype, each: int = 1, more: int = 0) -> np.ndarray:
    """What the first buffer of a column has for its rows, whether they are null or not: ``each``
    numbers per row, and ``more`` at the end."""
    values = column.buffers()[1]
    count = len(column) * each + more
    if not len(column) or values is None:
        return np.zeros(count, dtype)
    return np.frombuffer(values, dtype, count, column.offset * each * dtype.itemsize)


def _integers(column: pa.Array) -> np.ndarray:
    return _numbers(column, np.dtype(column.type.to_pandas_dtype())).astype(np.int64)


def _has_one_size(kind: pa.DataType) -> bool:
    if pa.types.is_fixed_size_binary(kind):
        return True
    return not kind.num_fields and is_plain(kind) and kind not in TEXTS


def _halves(column: pa.Array) -> np.ndarray:
    rows = len(column)
    if rows <= 1:
        return np.full(rows, BEYOND)
    return np.concatenate(
        [row_bytes(column.slice(0, rows // 2)), row_bytes(column.slice(rows // 2))]
    )


def _of_dictionary(column: pa.DictionaryArray) -> np.ndarray:
    """The dictionary may be far larger than the column: only what is used of it counts."""
    dictionary = column.dictionary
    used, places = np.unique(_integers(column.indices), return_inverse=True)
    used = used.clip(0, max(0, len(dictionary) - 1))  # null rows may have any
    if not len(used) or not len(dictionary):
        return np.full(len(column), VALUE_BYTES)
    return np.concatenate([row_bytes(dictionary.slice(int(i), 1)) for i in used])[places]


def _of_runs(column: pa.Array) -> np.ndarray:
    first, count = column.find_physical_offset(), column.find_physical_length()
    ends = _integers(column.run_ends.slice(first, count)) - column.offset
    runs = np.diff(ends.clip(0, len(column)), prepend=0)
    return np.repeat(row_bytes(column.values.slice(first, count)), runs)


def _of_lists(column: Any) -> np.ndarray:
    """Lists of all kinds, and maps."""
    rows, kind = len(column), column.type
    values = column.values
    if pa.types.is_fixed_size_list(kind):
        starts = (np.arange(rows) + column.offset) * kind.list_size
        stops = starts + kind.list_size
    elif pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        starts = _integers(column.offsets)
        stops = starts + _integers(column.sizes)
    else:
        offsets = _integers(column.offsets)
        starts, stops = offsets[:-1], offsets[1:]
    if not rows:
        return np.zeros(0, np.int64)
    if _has_one_size(values.type):
        counts = stops - starts
        each = VALUE_BYTES + (
            values.type.byte_width if pa.types.is_fixed_size_binary(values.type) else 0
        )
        return np.where(counts > MOST_VALUES, BEYOND, VALUE_BYTES + counts * each)
    first, last = int(starts.min()), int(stops.max())
    if max(last - first, int((stops - starts).sum())) > MOST_VALUES:
        return _halves(column)
    sizes = np.concatenate([[0], row_bytes(values.slice(first, last - first)).cumsum()])
    found: np.ndarray = VALUE_BYTES + sizes[stops - first] - sizes[starts - first]
    return found
