"""Tables of flatbuffers, in which Arrow's IPC messages describe themselves.

Only as much as it takes to look at sizes before Arrow acts on them. See
https://flatbuffers.dev/internals/.
"""

import struct
from collections.abc import Iterator


class Table:
    """A table of a flatbuffer. A field's place is found through the table's list of offsets.

    Raises:
        struct.error: an offset leads out of the data.
    """

    def __init__(self, data: bytes, at: int):
        self._data, self._at = data, at
        self._fields = at - self._unpack("<i", at)
        (self._size,) = struct.unpack_from("<H", data, self._place(self._fields))

    @classmethod
    def root(cls, data: bytes) -> "Table":
        return cls(data, struct.unpack_from("<I", data)[0])

    @staticmethod
    def _place(at: int) -> int:
        if at < 0:  # struct would count from the end
            raise struct.error("an offset before the beginning")
        return at

    def _unpack(self, form: str, at: int) -> int:
        value: int = struct.unpack_from(form, self._data, self._place(at))[0]
        return value

    def _field(self, number: int) -> int:
        """The place of a field; 0 if the table lacks it."""
        entry = 4 + 2 * number
        if entry + 2 > self._size:
            return 0
        offset = self._unpack("<H", self._fields + entry)
        return self._at + offset if offset else 0

    def number(self, field: int, form: str = "<q", default: int = 0) -> int:
        at = self._field(field)
        return self._unpack(form, at) if at else default

    def table(self, field: int) -> "Table | None":
        at = self._field(field)
        return Table(self._data, at + self._unpack("<I", at)) if at else None

    def size(self, field: int) -> int:
        """Bytes of a string, or elements of a vector."""
        at = self._field(field)
        return self._unpack("<I", at + self._unpack("<I", at)) if at else 0

    def structs(self, field: int, form: str) -> list[tuple[int, ...]]:
        """The elements of a vector of structs or numbers."""
        at, count = self._field(field), self.size(field)
        if not count:
            return []
        start = at + self._unpack("<I", at) + 4
        stop = start + count * struct.calcsize(form)
        if stop > len(self._data):
            raise struct.error("a vector beyond the end")
        return list(struct.iter_unpack(form, self._data[self._place(start) : stop]))

    def tables(self, field: int) -> "Iterator[Table]":
        """The elements of a vector of tables."""
        at = self._field(field)
        if at:
            start = at + self._unpack("<I", at)
            for i in range(self._unpack("<I", start)):
                place = start + 4 + 4 * i
                yield Table(self._data, place + self._unpack("<I", place))
