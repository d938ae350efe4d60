"""What the first bytes of a file tell: its format where its name tells none, and that it is none.

Hadoop and Spark name their files ``part-00000``. The first bytes tell the compression and, below
it, Parquet, Arrow or lines of JSON; plain text is not told apart from anything else.
"""

import io
from contextlib import suppress

import orjson

from pipeline.corpus.lines import open_decompressed
from pipeline.errors import BadFileError
from pipeline.storage.listing import InputFile
from pipeline.storage.places import open_input

COMPRESSED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}
"""The ending of a compressed file by its first bytes."""
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


def ending_of(file: InputFile) -> str:
    """The ending that the file's content deserves, such as ``.jsonl.gz``; empty if it is unknown.

    Raises:
        Exception: whatever the filesystem raises.
    """
    with open_input(file.url) as raw:
        head = raw.read(8)
        raw.seek(0)
        for first, ending in COLUMNAR.items():
            if head.startswith(first):
                return ending
        compression = next((e for first, e in COMPRESSED.items() if head.startswith(first)), "")
        with suppress(EOFError, OSError, ValueError):
            if _is_json_lines(open_decompressed(raw, compression)):
                return f".jsonl{compression}"
    return ""


def _is_json_lines(file: io.BufferedIOBase) -> bool:
    line = file.readline(LONGEST_LINE).strip().removeprefix(b"\xef\xbb\xbf")
    return line.startswith(b"{") and isinstance(orjson.loads(line), dict)
