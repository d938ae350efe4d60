"""How much memory reading may take, whatever a file says of itself; docs/memory.md has the bound.

A format states sizes before what they are the sizes of: a page or a record batch, uncompressed; a
window; a number of rows. What states more than a limit is rejected with the figure, before any
memory is taken for it. What is within the limits is decoded in steps.
"""

LEAST_LIMIT = 1 << 30
"""Bytes of pages, or of a record batch, that may be decoded at a time, at least."""
STEP_BYTES = 8 << 20
"""Bytes of Python values that rows are turned into at a time, about: or one row."""
MOST_VALUES = 8 << 20
"""Values that one record may hold, in lists, objects and fields."""
LEAST_ROWS = 1 << 24
ROWS_PER_BYTE = 1000
"""A file may state so many rows, and so many per byte of its size: more have nothing in them."""


def most_bytes(max_document_bytes: int) -> int:
    """Bytes that a file may state for what has to be decoded as a whole."""
    return max(LEAST_LIMIT, 2 * max_document_bytes)


def reading_bytes(max_document_bytes: int) -> int:
    """Memory that reading takes of a process at most: twice what is decoded as a whole, and a
    document in some forms (a line, Python's string with four bytes per character, UTF-8)."""
    return 2 * most_bytes(max_document_bytes) + 16 * max_document_bytes


def most_rows(file_bytes: int) -> int:
    """Rows that a file of so many bytes may state."""
    return max(LEAST_ROWS, ROWS_PER_BYTE * file_bytes)


def too_large(what: str, size: int, limit: int) -> str:
    """The reason to reject what states a size beyond the limit."""
    return (
        f"{what} states {size:,} bytes, uncompressed, and {limit:,} are read at most; write it in "
        "smaller pieces, or raise --max-document-bytes to half of that size"
    )
