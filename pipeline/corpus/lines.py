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
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import zstandard

from pipeline.corpus.headers.limits import LEAST_LIMIT
from pipeline.errors import BadFileError

BLOCK_BYTES = 1 << 20
COMPRESSIONS = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")
"""How the names of compressed files end, in lower case."""
ZSTD_PIECE = 1 << 10
"""Compressed bytes that are handed to zstd at a time: four of them may become 128 KB."""
BLANK_LINES = re.compile(rb"\s*\n")


def open_decompressed(
    file: io.BufferedIOBase, name: str, limit: int = LEAST_LIMIT
) -> io.BufferedIOBase:
    """The file's plain bytes. The name's end tells the compression; files may have many members.

    Args:
        limit: bytes that decompressing may take: of a zstd window or an xz dictionary.

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
        return io.BufferedReader(_Members(file, bz2.BZ2Decompressor), BLOCK_BYTES)
    if suffix == ".xz":
        dictionary = f"a dictionary of more than {limit:,} bytes"
        members = _Members(file, lambda: lzma.LZMADecompressor(memlimit=limit), b"\0", dictionary)
        return io.BufferedReader(members, BLOCK_BYTES)
    return io.BufferedReader(_ZstdReader(file, limit), BLOCK_BYTES)


class _Decompressor(Protocol):
    """Decompresses one member, as the standard library's classes do."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Members(io.RawIOBase):
    """The content of members, one after another, never more of it than is asked for."""

    def __init__(
        self,
        file: io.BufferedIOBase,
        new: Callable[[], _Decompressor],
        padding: bytes = b"",
        too_much: str = "",
    ):
        """
        Args:
            new: makes the decompressor of a member.
            padding: bytes that may stand between members.
            too_much: what a member has that is refused with an error about memory.
        """
        self._file, self._new, self._padding, self._too_much = file, new, padding, too_much
        self._member: _Decompressor | None = None
        self._compressed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if not self._compressed and (self._member is None or self._member.needs_input):
                self._compressed = self._file.read(1 << 16)
                if not self._compressed:
                    if self._member is not None:
                        raise EOFError("the file ends in the middle of its compressed data")
                    return 0
            if self._member is None:
                if self._padding:
                    self._compressed = self._compressed.lstrip(self._padding)
                if not self._compressed:
                    continue
                self._member = self._new()
            plain = self._decompress(self._member, len(buffer))
            if self._member.eof:
                self._compressed, self._member = self._member.unused_data, None
            if plain:
                buffer[: len(plain)] = plain
                return len(plain)

    def _decompress(self, member: _Decompressor, size: int) -> bytes:
        try:
            plain = member.decompress(self._compressed, size)
        except lzma.LZMAError as error:
            if "limit" in str(error):
                raise BadFileError(f"cannot be decompressed: it has {self._too_much}") from error
            raise
        self._compressed = b""  # the decompressor keeps what is left
        return plain


class _ZstdReader(io.RawIOBase):
    """The content of zstd frames, one after another. The library's reader misses truncated ones."""

    def __init__(self, file: io.BufferedIOBase, limit: int):
        self._file, self._limit = file, limit
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=limit)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            if not self._compressed:
                self._compressed = self._file.read(ZSTD_PIECE)
                if not self._compressed:
                    if self._frame is not None:
                        raise EOFError("the file ends in the middle of a zstd frame")
                    return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                self._plain = memoryview(self._frame.decompress(self._compressed))
            except zstandard.ZstdError as error:
                if "too much memory" in str(error):
                    raise BadFileError(
                        f"has a zstd window of more than {self._limit:,} bytes; compress it with a "
                        "smaller one, or raise --max-document-bytes to half of what it needs"
                    ) from error
                raise
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

    Ranges that meet share no line and lose none. Lines come without their newline; blank ones are
    passed over; a line of more than ``max_bytes`` bytes comes as None and is never held in memory.

    Args:
        file: at its beginning; seekable unless ``start`` is 0.
        stop: None: to the end.
    """
    offset = _seek_line(file, start) if start else 0
    line, length = bytearray(), 0
    for block in _blocks(file):
        at = 0
        while at < len(block):
            if not length:
                # Millions of blank lines take a few bytes, compressed, and no time here.
                if block[at] <= 0x20 and (blank := BLANK_LINES.match(block, at)):
                    offset += blank.end() - at
                    at = blank.end()
                if stop is not None and offset >= stop:
                    return
            newline = block.find(b"\n", at)
            if newline >= 0 and not length and newline - at <= max_bytes:
                yield offset, block[at:newline]
                offset += newline + 1 - at
                at = newline + 1
                continue
            end = len(block) if newline < 0 else newline
            length += end - at
            if length <= max_bytes:
                line += memoryview(block)[at:end]
            else:
                line.clear()
            at = end + 1
            if newline >= 0:
                yield offset, bytes(line) if length <= max_bytes else None
                offset += length + 1
                line.clear()
                length = 0
    if length:
        yield offset, bytes(line) if length <= max_bytes else None


def _seek_line(file: io.BufferedIOBase, start: int) -> int:
    """Go to the first line that begins at ``start`` or later; returns its offset, or the end of a
    file that has none."""
    # The byte before tells whether a line begins exactly at `start`.
    offset = start - 1
    file.seek(offset)
    for block in _blocks(file):
        newline = block.find(b"\n")
        offset += len(block) if newline < 0 else newline + 1
        if newline >= 0:
            break
    file.seek(offset)
    return offset


def _blocks(file: io.BufferedIOBase) -> Iterator[bytes]:
    # A decompressor's read1 returns what it has; read would lose that at a broken place.
    read = getattr(file, "read1", file.read)
    while block := read(BLOCK_BYTES):
        yield block
