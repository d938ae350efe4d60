"""Load large packages fast."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Load modules and models without garbage collections, of this whole process.

    Python looks for garbage again and again while objects become more, and a module's objects stay.
    Without that, torch and the packages of a patching job load in four fifths of the time
    (tests/benchmarks/RESULTS.md, the runs over 1 kB). What is loaded at first is not looked through
    later either, until the process ends: libraries tell of what is not freed then.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        if not gc.get_freeze_count():  # garbage that was frozen each time would become more
            gc.freeze()
            atexit.register(gc.unfreeze)
    finally:
        gc.enable()
