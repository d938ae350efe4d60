"""An iterator whose items are made in a thread, so that stages of a chain overlap."""

import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def prefetch(
    items: Iterator[T], ahead: int = 1, cores: int | None = None
) -> Generator[T, None, None]:
    """``items``, made in a thread while earlier ones are being used.

    Chained, such iterators overlap reading, scoring and writing, with ``ahead`` items in flight
    between two stages. Errors come out where their item would have. The thread ends with the items
    or when the iterator is closed or dropped, once the item it is at is made.

    Args:
        ahead: items that are made, or waiting to be taken, beyond the one in use; at least 1.
        cores: threads of each matrix product in there; as many as here by default. (A new thread's
            would use every core, whatever was set in this one.)
    """
    end = object()
    process_ends = sys.is_finalizing  # as a local variable: by then modules may be empty
    threads = cores or torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "prefetch", torch.set_num_threads, (threads,))
    try:
        upcoming: deque[Future[T | object]] = deque()
        for _ in range(ahead):
            upcoming.append(pool.submit(next, items, end))
        while (item := upcoming.popleft().result()) is not end:
            upcoming.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        if not process_ends():  # then the thread has ended already
            pool.shutdown(cancel_futures=True)
