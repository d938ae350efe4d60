"""Memory of workers."""

import ctypes
from contextlib import suppress

import pyarrow as pa

MALLOC_SETTINGS = {
    -3: 8 << 20,  # M_MMAP_THRESHOLD: larger blocks go back to the system when they are freed
    -1: 64 << 20,  # M_TRIM_THRESHOLD: so much is kept to be used again, instead of fetched anew
    -8: 2,  # M_ARENA_MAX: threads share heaps; each keeps fragments of its own
}
"""For glibc's mallopt."""


def bound_memory() -> None:
    """Keep a process from growing with every split.

    glibc otherwise raises the size from which blocks go back to the system to that of the largest
    block freed so far, and keeps fragments of such sizes, in a heap for each thread. Sizes below
    what a batch needs would make scoring slower: every batch would get its pages anew.
    """
    with suppress(OSError, AttributeError):  # another C library
        for parameter, value in MALLOC_SETTINGS.items():
            ctypes.CDLL(None).mallopt(parameter, value)
    # Arrow's own allocators keep more of what is freed.
    pa.set_memory_pool(pa.system_memory_pool())
