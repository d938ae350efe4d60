"""Values of which each worker needs a few, such as what each piece of a stage is made of."""

import pickle
from collections.abc import Iterable
from typing import Generic, TypeVar

import pyarrow as pa

T = TypeVar("T")


class Packed(Generic[T]):
    """Values by number, pickled into a column. The workers of a node share the memory of the
    column, and unpack a value when they need it: as objects, a million would take gigabytes in
    each worker."""

    def __init__(self, values: Iterable[T]):
        self._column = pa.array((pickle.dumps(value) for value in values), pa.large_binary())

    def __getitem__(self, number: int) -> T:
        value: T = pickle.loads(self._column[number].as_buffer())
        return value
