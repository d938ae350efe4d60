"""Values in Thrift's compact protocol, in which Parquet's footer and page headers are written.

Only as much as it takes to look at sizes before Arrow acts on them: structs come as dicts from the
number of a field to its value, and what nobody asks for is skipped without being built. See
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from typing import Any

TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = 1, 2, 3, 7, 8, 9, 10, 11, 12, 13
I16, I32, I64 = 4, 5, 6
BITS = {I16: 16, I32: 32, I64: 64}
MOST_DEPTH = 64


class ThriftError(ValueError):
    """The bytes are no such value."""


class CompactReader:
    """Reads values, one after another.

    Raises:
        IndexError: the bytes end within a value.
        ThriftError: they are none.
    """

    def __init__(self, data: bytes, start: int = 0, most_structs: int = 1 << 16):
        """
        Args:
            start: offset of the first value.
            most_structs: structs that may be read.
        """
        self._data = data
        self._structs_left = most_structs
        self.at = start
        """Offset of the next value."""

    def byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ThriftError("a number of more than 64 bits")

    def integer(self, kind: int = I64) -> int:
        """A number of a type, which it has to fit: Arrow's reader would take its last bits."""
        value = self.varint()
        if value >> BITS[kind]:
            raise ThriftError(f"a number of more than {BITS[kind]} bits")
        return (value >> 1) ^ -(value & 1)

    def _size(self) -> int:
        size = self.varint()
        if size >> 31:
            raise ThriftError(f"a size of {size:,}")
        return size

    def binary(self) -> bytes:
        size = self._size()
        self._skip_bytes(size)
        return self._data[self.at - size : self.at]

    def _skip_bytes(self, size: int) -> None:
        if size > len(self._data) - self.at:
            raise IndexError
        self.at += size

    def list_header(self) -> tuple[int, int]:
        """Number and type of the elements that follow."""
        head = self.byte()
        size = head >> 4
        return (self._size() if size == 15 else size), head & 15

    def fields(self) -> "Fields":
        """The fields of a struct: numbers and types, in order; each has to be read or skipped."""
        self._structs_left -= 1
        if self._structs_left < 0:
            raise ThriftError("too many parts")
        return Fields(self)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """A struct; of lists, sets and maps in it only their place is told: they are skipped."""
        values: dict[int, Any] = {}
        for number, kind in self.fields():
            if number in values:
                raise ThriftError(f"field {number} twice")
            values[number] = self.value(kind, depth)
        return values

    def value(self, kind: int, depth: int = 0) -> Any:
        """The value of a struct's field."""
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind in BITS:
            return self.integer(kind)
        if kind == BINARY:
            return self.binary()
        if kind == STRUCT and depth < MOST_DEPTH:
            return self.struct(depth + 1)
        return self.skip(kind, depth)

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over the value of a struct's field."""
        if depth > MOST_DEPTH:
            raise ThriftError(f"structs in one another, {depth} deep")
        if kind in BITS:
            self.varint()
        elif kind == BINARY:
            self._skip_bytes(self._size())
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (LIST, SET):
            size, inner = self.list_header()
            self._skip_elements(size, inner, depth)
        elif kind == MAP:
            size = self._size()
            kinds = self.byte() if size else 0
            for _ in range(size):
                self._skip_elements(1, kinds >> 4, depth)
                self._skip_elements(1, kinds & 15, depth)
        elif kind in (BYTE, DOUBLE, UUID):
            self._skip_bytes({BYTE: 1, DOUBLE: 8, UUID: 16}[kind])
        elif kind not in (TRUE, FALSE):
            raise ThriftError(f"no type has the number {kind}")

    def _skip_elements(self, size: int, kind: int, depth: int) -> None:
        if size > len(self._data) - self.at:  # each has a byte at least
            raise IndexError
        if kind in (TRUE, FALSE):
            self._skip_bytes(size)
            return
        for _ in range(size):
            self.skip(kind, depth + 1)


class Fields:
    """Iterates over the numbers and types of a struct's fields."""

    def __init__(self, reader: CompactReader):
        self._reader, self._number = reader, 0

    def __iter__(self) -> "Fields":
        return self

    def __next__(self) -> tuple[int, int]:
        head = self._reader.byte()
        if not head:
            raise StopIteration
        step = head >> 4
        self._number = self._number + step if step else self._reader.integer(I16)
        if self._number > 0x7FFF:
            raise ThriftError(f"a field of number {self._number}")
        return self._number, head & 15
