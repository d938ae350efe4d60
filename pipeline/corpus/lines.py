"""Lines of large files, plain or compressed, in bounded memory."""

import gzip
import io
from collections.abc import Iterator

import zstandard

CHUNK_BYTES = 1 << 20
COMPRESSIONS = (".gz", ".zst")
"""How the names of compressed files end."""


def open_decompressed(file: io.BufferedIOBase, name: str) -> io.BufferedIOBase:
    """``file`` as plain bytes; gzip and zstd (any number of members) by the end of ``name``."""
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if name.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(file), CHUNK_BYTES)
    return file


class _ZstdReader(io.RawIOBase):
    """zstd frames after one another; unlike the library's reader it notices a truncated one."""

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
                # Small pieces: one decompresses to at most a few thousand times its size.
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

    So that ranges that meet share no line and lose none. Lines come without their newline; one
    longer than ``max_bytes`` comes as None and is never held in memory.
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
    """What lies between newlines, a chunk at a time; with whether a newline follows."""
    # A decompressor's read1 gives what it has: read would throw that away at a broken place.
    read = getattr(file, "read1", file.read)
    while chunk := read(CHUNK_BYTES):
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            yield piece, True
        if rest:
            yield rest, False
