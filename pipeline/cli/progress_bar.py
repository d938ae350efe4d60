"""Progress for people: a bar on a terminal, a line every few seconds in a log."""

import time
from collections import deque
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
RATE_SECONDS = 180.0
"""Time over which a rate is taken: that of the last minutes, not that since the beginning."""
LEAST_RATE_SECONDS = 5.0
"""Time without which there is no rate yet."""


class Rate:
    """The rate of the last minutes.

    Its time begins with the first bytes: what comes before, such as loading a model, is no work.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()
        self._moved: tuple[float, float] | None = None
        """When the number of bytes changed last, and to what."""
        self.still = 0.0
        """Seconds since then."""

    def add(self, seconds: float, done: float) -> None:
        """Take note of the bytes that are done in all, at a time."""
        if self._moved is None or self._moved[1] != done:
            self._moved = seconds, done
        self.still = seconds - self._moved[0]
        samples = self._samples
        if len(samples) == 1 and samples[0][1] == done:
            samples.clear()
        samples.append((seconds, done))
        while len(samples) > 2 and samples[1][0] <= seconds - RATE_SECONDS:
            samples.popleft()

    @property
    def per_second(self) -> float | None:
        """Bytes per second; None as long as nothing tells."""
        if len(self._samples) < 2:
            return None
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        if ended - began < LEAST_RATE_SECONDS or last <= first:
            return None
        return (last - first) / (ended - began)


def progress_bar(console: Console) -> Progress:
    """A bar for bytes; it shows nothing where the output is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=RATE_SECONDS,
    )


def progress_line(doing: str, done: float, left: float, rate: Rate) -> str:
    """A line for logs: how much is done, how fast it goes, and when it will end; or that nothing
    has come for minutes, as where the last worker reads from storage that hangs.

    Args:
        done: bytes that are done.
        left: approximate bytes that are left.
        rate: has been told of all that was done.
    """
    whole = done + left
    unit, name = next((u for u in UNITS if whole >= u[0]), UNITS[-1])
    amount = f"{doing}: {done / unit:.1f} of about {whole / unit:.1f} {name}"
    if rate.per_second is None:
        is_long = rate.still >= RATE_SECONDS
        what = f"nothing new for {time_text(rate.still)}" if is_long else "estimating the rate"
        return f"{amount} · {what}"
    return f"{amount} · {rate_text(rate.per_second)} · {time_text(left / rate.per_second)} left"


UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def rate_text(rate: float) -> str:
    """A rate, given in bytes per second, with three digits."""
    return f"{amount_text(rate)}/s"


def amount_text(size: float) -> str:
    """A number of bytes, with three digits."""
    unit, name = next((u for u in UNITS if size >= u[0]), UNITS[-1])
    value = size / unit
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"


def time_text(seconds: float) -> str:
    """A time that is not known exactly."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"


@contextmanager
def metered(console: Console, doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of work in this process while the block runs.

    Args:
        doing: the name of the work, such as "scoring".
        total: approximate bytes of all the work.

    Yields:
        a function to call with the bytes that were done since its last call.
    """
    last_line = time.monotonic()
    done, rate = 0, Rate()
    with progress_bar(console) as bar:
        task = bar.add_task(doing, total=total)

        def advance(count: int) -> None:
            nonlocal done, last_line
            done += count
            bar.update(task, completed=done, total=max(total, done))
            now = time.monotonic()
            rate.add(now, done)
            if not console.is_terminal and now - last_line > LINE_SECONDS:
                last_line = now
                line = progress_line(doing, done, max(total - done, 0), rate)
                console.print(line, highlight=False)

        yield advance
