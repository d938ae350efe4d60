r"""Lines of large files, plain or compressed, in bounded memory.

A file can be read by several workers, each of which reads the lines that begin in its range of
bytes. A worker need not know the others' ranges, because the byte before its range tells whether a
line begins at its first byte. For example, the file ``ab\n`` ``cde\n`` ``f\n`` has lines at 0, 3
and 7. The range [0, 4) holds the lines at 0 and 3, and is read up to byte 7; [4, 8) begins inside a
line, skips to 7 and holds the line there; with [0, 3) and [3, 8) the second range begins after a
newline and skips nothing.
"""

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from typing import IO, cast

import zstandard

from pipeline.errors import BadFileError

BLOCK_BYTES = 1 << 20
COMPRESSIONS = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")
"""How the names of compressed files end, in lower case."""


def open_decompressed(file: io.BufferedIOBase, name: str) -> io.BufferedIOBase:
    """The file's plain bytes. The name's end tells the compression; files may have many members.

    Raises:
        BadFileError: the file is compressed, and empty: even nothing has some bytes, compressed.
    """
    suffix = next((end for end in COMPRESSIONS if name.lower().endswith(end)), None)
    if suffix is None:
        return file
    if not file.read(1):
        raise BadFileError(f"is empty, which no {suffix} file is")
    file.seek(0)
    if suffix in (".gz", ".gzip"):
        return gzip.GzipFile(fileobj=file)
    if suffix == ".bz2":
        return cast(io.BufferedIOBase, bz2.BZ2File(file))
    if suffix == ".xz":
        return cast(io.BufferedIOBase, lzma.LZMAFile(cast(IO[bytes], file)))
    return io.BufferedReader(_ZstdReader(file), BLOCK_BYTES)


class _ZstdReader(io.RawIOBase):
    """The content of zstd frames, one after another. The library's reader misses truncated ones."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        while not self._plain:
            if not self._compressed:
                # A small piece: it may decompress to a few thousand times its size.
                self._compressed = self._file.read(1 << 14)
                if not self._compressed:
                    if self._frame is not None:
                        raise EOFError("the file ends in the middle of a zstd frame")
                    return 0
            if self._frame is None:
                decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
                self._frame = decompressor.decompressobj()
            self._plain = memoryview(self._frame.decompress(self._compressed))
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count


def read_lines(
    file: io.BufferedIOBase, start: int, stop: int | None, max_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """``(offset, line)`` of every line whose first byte lies in ``[start, stop)``.

    Ranges that meet share no line and lose none. Lines come without their newline; a line of more
    than ``max_bytes`` bytes comes as None and is never held in memory.

    Args:
        file: at its beginning; seekable unless ``start`` is 0.
        stop: None: to the end.
    """
    offset = start
    if start:
        # The byte before tells whether a line begins exactly at `start`.
        file.seek(start - 1)
        offset = start - 1
        for piece, ended in _pieces(file):
            offset += len(piece) + ended
            if ended:
                break
        else:
            return
        file.seek(offset)
    line, length = bytearray(), 0
    for piece, ended in _pieces(file):
        if stop is not None and offset >= stop:
            return
        length += len(piece)
        if length <= max_bytes:
            line += piece
        else:
            line.clear()
        if ended:
            yield offset, bytes(line) if length <= max_bytes else None
            offset += length + 1
            line.clear()
            length = 0
    if length and (stop is None or offset < stop):
        yield offset, bytes(line) if length <= max_bytes else None


def _pieces(file: io.BufferedIOBase) -> Iterator[tuple[bytes, bool]]:
    """Pieces of lines, at most a block long, each with whether a newline follows it."""
    # A decompressor's read1 returns what it has; read would lose that at a broken place.
    read = getattr(file, "read1", file.read)
    while block := read(BLOCK_BYTES):
        *whole, rest = block.split(b"\n")
        for piece in whole:
            yield piece, True
        if rest:
            yield rest, False
