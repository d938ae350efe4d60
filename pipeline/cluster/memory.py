"""Keep the memory of worker processes bounded."""

import ctypes
from contextlib import suppress

import pyarrow as pa

MALLOC_SETTINGS = {
    -3: 8 << 20,  # M_MMAP_THRESHOLD: a larger block goes back to the system when it is freed
    -1: 64 << 20,  # M_TRIM_THRESHOLD: so many free bytes are kept for later instead of given back
    -8: 2,  # M_ARENA_MAX: threads share this many heaps, each of which keeps its own fragments
}
"""Parameters of glibc's mallopt and their values, in bytes and heaps."""


def bound_memory() -> None:
    """Keep a process from growing with every piece of work.

    By default glibc gives blocks back to the system only above a threshold, raises that threshold
    to the largest block that was freed so far, and so keeps large fragments in one heap per thread.
    Here the threshold is fixed. It is above what a batch needs: otherwise the system would have to
    hand out new pages for each batch, and scoring would be slower.
    """
    with suppress(OSError, AttributeError):  # another C library
        for parameter, value in MALLOC_SETTINGS.items():
            ctypes.CDLL(None).mallopt(parameter, value)
    # Arrow's own allocators would keep more of the memory that is freed.
    pa.set_memory_pool(pa.system_memory_pool())
