"""Progress of a stage: workers count the bytes that they did, the driver shows the sum."""

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from pipeline.cli.progress_bar import LINE_SECONDS, Rate, progress_bar, progress_line

POLL_SECONDS = 0.5
REPORT_SECONDS = 1.0
"""A worker sends a message about once in this time, however often it counts."""
SILENCE_SECONDS = 60.0
"""A message that comes again within this time is not shown again: workers say the same."""


@ray.remote(num_cpus=0, max_restarts=-1)
class _Counter:
    """Holds the bytes of text that are done per piece of the newest stage that it heard of.

    Counts are totals, not increments: a piece that is repeated is not counted twice, and an actor
    that is started again, because a node ran out of memory, soon has all counts again.
    """

    def __init__(self) -> None:
        self._stage = 0
        self._bytes: dict[int, int] = {}
        self._messages: dict[str, None] = {}

    def put(self, stage: int, piece: int, count: int) -> None:
        self._begin(stage)
        if stage == self._stage:  # and not a late message of the one before
            self._bytes[piece] = count

    def say(self, message: str) -> None:
        """Take a message for whoever watches; many workers may have the same."""
        self._messages[message] = None

    def get(self, stage: int) -> tuple[dict[int, int], list[str]]:
        """The bytes per piece, and the messages since the last call."""
        self._begin(stage)
        messages, self._messages = list(self._messages), {}
        return self._bytes, messages

    def _begin(self, stage: int) -> None:
        if stage > self._stage:
            self._stage, self._bytes = stage, {}


@dataclass(frozen=True)
class Progress:
    """The progress of one stage, which its workers report to and its driver reads."""

    stage: int
    """The stages of a driver are numbered in their order."""
    counter: ActorHandle

    def put(self, piece: int, count: int) -> None:
        """Report the bytes that are done of a piece, without waiting."""
        self.counter.put.remote(self.stage, piece, count)

    def say(self, message: str) -> None:
        """Send a message to the driver, without waiting."""
        self.counter.say.remote(message)

    def get(self) -> tuple[dict[int, int], list[str]]:
        """The bytes per piece, and the messages since the last call.

        Raises:
            RayError: the actor is being started again.
        """
        counts: Any = ray.get(self.counter.get.remote(self.stage))
        return cast(tuple[dict[int, int], list[str]], counts)


_stages = itertools.count(1)


def start_progress() -> Progress:
    """The progress of a new stage. All stages of a driver share one actor: a process takes a second
    to start, which is longer than many a stage."""
    context = ray.get_runtime_context()
    return Progress(next(_stages), _counter(context.get_node_id(), context.get_job_id()))


@lru_cache(maxsize=1)
def _counter(node: str, job: str) -> ActorHandle:
    """The actor of a driver: these ids change when it joins another Ray."""
    # It must live as long as the driver does: keep it off nodes that may be lost.
    here = NodeAffinitySchedulingStrategy(node, soft=True)
    return _Counter.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Reporter:
    """Counts the bytes that are done of one piece, and reports them now and then."""

    def __init__(self, progress: Progress, piece: int):
        self._progress, self._piece = progress, piece
        self._reported_at = 0.0
        self.done = 0

    def __call__(self, count: int) -> None:
        """Add ``count`` bytes."""
        self.done += count
        if time.monotonic() - self._reported_at > REPORT_SECONDS:
            self._reported_at = time.monotonic()
            self._progress.put(self._piece, self.done)

    def say(self, message: str) -> None:
        """Show a message on the driver's console."""
        self._progress.say(message)


@contextmanager
def show_progress(
    console: Console,
    doing: str,
    estimates: Mapping[int, int],
    done: Mapping[int, int],
    progress: Progress,
) -> Iterator[Callable[[int, int], None]]:
    """Show progress while the block runs.

    Args:
        doing: the name of the stage, such as "patching".
        estimates: approximate bytes of text per piece that is to be done.
        done: bytes per piece that an earlier run finished; they do not count for the rate.

    Yields:
        a function to call with each piece that is finished and its actual bytes.
    """
    actual = {**done}
    stop = threading.Event()
    with progress_bar(console) as bar:
        task = bar.add_task(doing, completed=sum(done.values()))

        def show() -> None:
            last_line, rate = time.monotonic(), Rate()
            said: dict[str, float] = {}
            while not stop.wait(POLL_SECONDS):
                reported: dict[int, int] = {}
                messages: list[str] = []
                with suppress(ray.exceptions.RayError):  # it is being started again
                    reported, messages = progress.get()
                for message in messages:
                    said_at, said[message] = said.get(message, -SILENCE_SECONDS), time.monotonic()
                    if time.monotonic() - said_at > SILENCE_SECONDS:
                        console.print(message, highlight=False, markup=False)
                completed, left = _amounts(estimates, done, reported | actual, actual.keys())
                rate.add(time.monotonic(), completed)
                bar.update(task, completed=completed, total=completed + left)
                if not console.is_terminal and time.monotonic() - last_line > LINE_SECONDS:
                    last_line = time.monotonic()
                    line = progress_line(doing, completed, left, rate.per_second)
                    console.print(line, highlight=False)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield actual.__setitem__
        finally:
            stop.set()
            thread.join()


def _amounts(
    estimates: Mapping[int, int],
    done: Mapping[int, int],
    current: Mapping[int, int],
    finished: Collection[int],
) -> tuple[int, int]:
    """The bytes that are done, and about how many are left.

    What is left is corrected by what finished pieces turned out to hold. For example, a compressed
    file may hold four times its size where three times were expected.

    Args:
        estimates: approximate bytes per piece of this run.
        done: bytes per piece of an earlier run.
        current: bytes per piece that are done, also of pieces that are being worked on.
        finished: pieces that are done.
    """
    over = [piece for piece in estimates if piece in finished and piece not in done]
    expected = sum(estimates[piece] for piece in over)
    held = sum(current[piece] for piece in over)
    scale = held / expected if held and expected else 1.0
    waiting = estimates.keys() - finished
    left = sum(max(scale * estimates[n] - current.get(n, 0), 0) for n in waiting)
    return sum(current.values()), round(left)
