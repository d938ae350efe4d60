"""The first bytes of a file: its format where its name tells none, that it is none, or a
compression that its name does not tell.

Hadoop and Spark name their files ``part-00000``. The first bytes tell the compression and, below
it, Parquet, Arrow or lines of JSON; plain text is not told apart from anything else.
"""

import io
import re
from contextlib import suppress

import orjson

from pipeline.corpus.lines import COMPRESSIONS, open_decompressed
from pipeline.errors import BadFileError
from pipeline.storage.listing import InputFile
from pipeline.storage.places import open_input

COMPRESSED = {
    ".gz": re.compile(rb"\x1f\x8b\x08"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd"),
    ".bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
}
"""The first bytes of a compressed file by the ending that its name should have."""
FIRST_BYTES = 10
"""Bytes that tell a compression."""
COLUMNAR = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"\xff\xff\xff\xff": ".arrow"}
"""The same for formats that are not compressed as a whole; the last is an Arrow stream's."""
LONGEST_LINE = 4 << 20
"""Bytes in which the first line of JSON has to end."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""Begins what Git leaves in the place of a large file that was not fetched."""
MOST_POINTER_BYTES = 1024


def check_is_there(raw: io.BufferedIOBase, size: int) -> None:
    """Check that a file is no pointer to one, and go back to its beginning: as a text, or a line of
    JSON, it would be taken for data.

    Args:
        size: bytes of the file.

    Raises:
        BadFileError: it is one.
    """
    if size <= MOST_POINTER_BYTES:
        if raw.read(len(POINTER)) == POINTER:
            raise BadFileError(
                "is a pointer of Git LFS and not the file itself, which was not downloaded: run "
                "git lfs pull where it was cloned"
            )
        raw.seek(0)


def check_compression(raw: io.BufferedIOBase, name: str) -> None:
    """Check that a file is compressed only if its name says so, and go back to its beginning: its
    bytes would be taken for a few lines that are broken.

    Args:
        name: in lower case.

    Raises:
        BadFileError: it is compressed, and its name does not say so.
    """
    if name.endswith(COMPRESSIONS):
        return
    ending = _compression(raw.read(FIRST_BYTES))
    raw.seek(0)
    if ending:
        raise BadFileError(f"is compressed, which its name does not say: let it end in {ending}")


def _compression(head: bytes) -> str:
    """The ending for what begins so; empty for what is not compressed."""
    return next((ending for ending, first in COMPRESSED.items() if first.match(head)), "")


def ending_of(file: InputFile) -> str:
    """The ending that the file's content deserves, such as ``.jsonl.gz``; empty if it is unknown.

    Raises:
        Exception: whatever the filesystem raises.
    """
    with open_input(file.url) as raw:
        head = raw.read(FIRST_BYTES)
        raw.seek(0)
        for first, ending in COLUMNAR.items():
            if head.startswith(first):
                return ending
        compression = _compression(head)
        with suppress(EOFError, OSError, ValueError):
            if _is_json_lines(open_decompressed(raw, compression)):
                return f".jsonl{compression}"
    return ""


def _is_json_lines(file: io.BufferedIOBase) -> bool:
    line = file.readline(LONGEST_LINE).strip().removeprefix(b"\xef\xbb\xbf")
    return line.startswith(b"{") and isinstance(orjson.loads(line), dict)
