"""Progress for people: a bar on a terminal, a line every few seconds in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_SECONDS = 15.0
"""Time between two lines where the output is not a terminal."""


def progress_bar(console: Console) -> Progress:
    """A bar for bytes; it shows nothing where the output is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def progress_line(doing: str, done: int, left: int, rate: float) -> str:
    """A line for logs: how much is done, how fast it goes, and when it will end.

    Args:
        done: bytes that are done.
        left: approximate bytes that are left.
        rate: bytes per second.
    """
    end = f"about {left / rate / 60:.0f} min left" if rate > 0 else "no rate yet"
    amount = f"{doing}: {done / 1e6:.1f} of about {(done + left) / 1e6:.1f} MB"
    return f"{amount} · {rate / 1e6:.2f} MB/s · {end}"


@contextmanager
def metered(console: Console, doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of work in this process while the block runs.

    Args:
        doing: the name of the work, such as "scoring".
        total: approximate bytes of all the work.

    Yields:
        a function to call with the bytes that were done since its last call.
    """
    began = last_line = time.monotonic()
    done = 0
    with progress_bar(console) as bar:
        task = bar.add_task(doing, total=total)

        def advance(count: int) -> None:
            nonlocal done, last_line
            done += count
            bar.update(task, completed=done, total=max(total, done))
            now = time.monotonic()
            if not console.is_terminal and now - last_line > LINE_SECONDS:
                last_line = now
                line = progress_line(doing, done, max(total - done, 0), done / (now - began))
                console.print(line, highlight=False)

        yield advance
