"""The format of a file whose name tells none, from its first bytes.

Hadoop and Spark name their files ``part-00000``. The first bytes tell the compression and, below
it, Parquet, Arrow or lines of JSON; plain text is not told apart from anything else.
"""

import io
from contextlib import suppress

import orjson

from pipeline.corpus.lines import open_decompressed
from pipeline.storage.listing import InputFile
from pipeline.storage.places import open_input

COMPRESSED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}
"""The ending of a compressed file by its first bytes."""
COLUMNAR = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"\xff\xff\xff\xff": ".arrow"}
"""The same for formats that are not compressed as a whole; the last is an Arrow stream's."""
LONGEST_LINE = 4 << 20
"""Bytes in which the first line of JSON has to end."""


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
