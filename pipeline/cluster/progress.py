"""Progress of a run: counted by the workers, shown by the driver."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
from rich.console import Console

from pipeline.cli.progress_bar import LINE_SECONDS, progress_bar, progress_line

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class Board:
    """Bytes of text done in each split; absolute, so that repeated work is not counted twice."""

    def __init__(self) -> None:
        self._bytes: dict[int, int] = {}

    def put(self, split: int, count: int) -> None:
        self._bytes[split] = count

    def get(self) -> dict[int, int]:
        return self._bytes


class Reporter:
    """Counts a split's bytes for the board, which hears of it about once a second."""

    def __init__(self, board: "ray.actor.ActorHandle", split: int):
        self._board, self._split = board, split
        self._told = 0.0
        self.done = 0

    def __call__(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self._told > 1:
            self._told = time.monotonic()
            self._board.put.remote(self._split, self.done)


@contextmanager
def shown(
    console: Console,
    doing: str,
    estimates: Mapping[int, int],
    done: Mapping[int, int],
    board: "ray.actor.ActorHandle",
) -> Iterator[Callable[[int, int], None]]:
    """Show progress while the block runs.

    Args:
        doing: what is done, as in "patching".
        estimates: bytes of text of each split to do, about.
        done: bytes of splits that an earlier run finished; they don't count for the rate.

    Yields:
        a function to call with a split and its actual bytes when it is finished.
    """
    actual = {**done}
    stop = threading.Event()
    with progress_bar(console) as bar:
        task = bar.add_task(doing, completed=sum(done.values()))

        def show() -> None:
            began = last_line = time.monotonic()
            while not stop.wait(POLL_SECONDS):
                told: dict[int, int] = ray.get(board.get.remote())  # type: ignore[assignment]
                current = told | actual
                completed = sum(current.values())
                waiting = estimates.keys() - actual.keys()
                left = sum(max(estimates[split] - current.get(split, 0), 0) for split in waiting)
                bar.update(task, completed=completed, total=completed + left)
                if not console.is_terminal and time.monotonic() - last_line > LINE_SECONDS:
                    last_line = time.monotonic()
                    rate = (completed - sum(done.values())) / (last_line - began)
                    line = progress_line(doing, completed, left, rate)
                    console.print(line, highlight=False)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield actual.__setitem__
        finally:
            stop.set()
            thread.join()
