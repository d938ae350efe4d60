"""Progress of a stage: workers count the bytes that they did, the driver shows the sum."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import Progress as Bar

from pipeline.cli.progress_bar import LINE_SECONDS, Rate, progress_bar, progress_line
from pipeline.cli.progress_json import EVERY_SECONDS, LINES
from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster.metrics import WorkerMetrics, show_state
from pipeline.cluster.software import Software, difference, software
from pipeline.cluster.stage_sums import StageSums

POLL_SECONDS = 0.5
REPORT_SECONDS = 1.0
"""A worker sends a message about once in this time, however often it counts."""
SILENCE_SECONDS = 60.0
"""A message that comes again within this time is not shown again: workers say the same."""


@ray.remote(num_cpus=0, max_restarts=-1)
class _Counter:
    """Holds news of the newest stage that it heard of, until the driver asks for them.

    Counts are totals of a piece, not increments: a piece that is repeated is not counted twice, and
    what is lost with an actor that is started again, because a node ran out of memory, comes with
    the next report.
    """

    def __init__(self) -> None:
        self._stage = 0
        self._counts: dict[int, WorkCounts] = {}
        self._messages: dict[str, None] = {}

    def put(self, stage: int, counts: dict[int, WorkCounts]) -> None:
        self._begin(stage)
        if stage == self._stage:  # and not a late message of the one before
            self._counts |= counts

    def say(self, message: str) -> None:
        """Take a message for whoever watches; many workers may have the same."""
        self._messages[message] = None

    def get(self, stage: int) -> tuple[dict[int, WorkCounts], list[str]]:
        """What is done of the pieces that were reported, and the messages, since the last call."""
        self._begin(stage)
        counts, self._counts = self._counts, {}
        messages, self._messages = list(self._messages), {}
        return counts, messages

    def _begin(self, stage: int) -> None:
        if stage > self._stage:
            self._stage, self._counts = stage, {}


@dataclass(frozen=True)
class Progress:
    """The progress of one stage, which its workers report to and its driver reads."""

    stage: int
    """The stages of a driver are numbered in their order."""
    doing: str
    """The stage's name, such as "patching"."""
    counter: ActorHandle
    software: Software
    """The driver's."""

    def put(self, counts: dict[int, WorkCounts]) -> None:
        """Report what is done of some pieces, without waiting."""
        self.counter.put.remote(self.stage, counts)

    def say(self, message: str) -> None:
        """Send a message to the driver, without waiting."""
        self.counter.say.remote(message)

    def get(self) -> tuple[dict[int, WorkCounts], list[str]]:
        """What is done of the pieces that were reported, and the messages, since the last call.

        Raises:
            RayError: the actor is being started again.
        """
        counts: Any = ray.get(self.counter.get.remote(self.stage))
        return cast(tuple[dict[int, WorkCounts], list[str]], counts)


_stages = itertools.count(1)


def start_progress(doing: str) -> Progress:
    """The progress of a new stage. All stages of a driver share one actor: a process takes a second
    to start, which is longer than many a stage."""
    context = ray.get_runtime_context()
    counter = _counter(context.get_node_id(), context.get_job_id())
    return Progress(next(_stages), doing, counter, software())


@lru_cache(maxsize=1)
def _counter(node: str, job: str) -> ActorHandle:
    """The actor of a driver: these ids change when it joins another Ray."""
    # It must live as long as the driver does: keep it off nodes that may be lost.
    here = NodeAffinitySchedulingStrategy(node, soft=True)
    return _Counter.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class _Worker:
    """What a worker process has counted in a stage and not sent yet. It sends a message about once
    in :data:`REPORT_SECONDS`, however many pieces it does meanwhile."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.lock = threading.Lock()  # reading, scoring and writing have a thread each
        self.metrics = WorkerMetrics(progress.doing)
        self._unsent: dict[int, WorkCounts] = {}
        self._sent_at = -REPORT_SECONDS
        if other := difference(progress.software):
            progress.say(other)

    def send(self, piece: int, counts: WorkCounts) -> bool:
        """Keep what is done of a piece, and send all that is kept if it is time; true if it was."""
        self._unsent[piece] = counts
        if time.monotonic() - self._sent_at <= REPORT_SECONDS:
            return False
        self.progress.put(self._unsent)
        self._unsent, self._sent_at = {}, time.monotonic()
        return True


_worker = lru_cache(maxsize=1)(_Worker)


class Reporter:
    """Counts what is done of one piece, and reports it now and then."""

    def __init__(self, progress: Progress, piece: int):
        self._worker, self._piece = _worker(progress), piece
        self._measured = self._counts = WorkCounts()

    def __call__(self, count: int) -> None:
        """Add ``count`` bytes."""
        self.count(WorkCounts(bytes=count))

    def count(self, more: WorkCounts) -> None:
        """Add what was done since the last call."""
        with self._worker.lock:
            self._counts += more
            if self._worker.send(self._piece, self._counts):
                self._measure()

    def finish(self) -> WorkCounts:
        """Measure the rest, when the piece is done; returns all that was counted. Its driver gets
        that with the outcome of the piece."""
        with self._worker.lock:
            self._measure()
            return self._counts

    def _measure(self) -> None:
        self._worker.metrics.add(self._counts - self._measured)
        self._measured = self._counts

    def say(self, message: str) -> None:
        """Show a message on the driver's console."""
        self._worker.progress.say(message)


class _Display:
    """The display of a stage: each look shows what came since the one before."""

    def __init__(
        self,
        console: Console,
        bar: Bar,
        estimates: Mapping[int, int],
        done: Mapping[int, int],
        progress: Progress,
    ):
        self.finished: deque[tuple[int, WorkCounts]] = deque()
        """Pieces since the last look, and what was done of them."""
        self._console, self._bar, self._progress = console, bar, progress
        self._task = bar.add_task(progress.doing, completed=sum(done.values()))
        self._sums, self._rate = StageSums(estimates, done), Rate()
        self._said: dict[str, float] = {}
        """When each message came last."""
        self._began = self._last_line = self._last_json = self._last_gauges = time.monotonic()

    def look(self, *, is_last: bool) -> None:
        """Ask what was done, and show it."""
        reported: dict[int, WorkCounts] = {}
        messages: list[str] = []
        with suppress(ray.exceptions.RayError):  # it is being started again
            reported, messages = self._progress.get()
        for piece, counts in reported.items():
            self._sums.report(piece, counts)
        while self.finished:
            self._sums.finish(*self.finished.popleft())
        now = time.monotonic()
        for message in messages:
            said_at, self._said[message] = self._said.get(message, -SILENCE_SECONDS), now
            if now - said_at > SILENCE_SECONDS:
                self._console.print(message, highlight=False, markup=False)
        doing = self._progress.doing
        state = self._sums.state(doing, now - self._began, self._rate)
        completed, left = state.counts.bytes, state.bytes_left
        self._bar.update(self._task, completed=completed, total=completed + left)
        if not self._console.is_terminal and now - self._last_line > LINE_SECONDS:
            self._last_line = now
            line = progress_line(doing, completed, left, self._rate)
            self._console.print(line, highlight=False)
        if now - self._last_gauges > REPORT_SECONDS or is_last:
            self._last_gauges = now
            show_state(state)
        if now - self._last_json > EVERY_SECONDS or is_last:
            self._last_json = now
            LINES.write(state)


@contextmanager
def show_progress(
    console: Console,
    estimates: Mapping[int, int],
    done: Mapping[int, int],
    progress: Progress,
) -> Iterator[Callable[[int, WorkCounts], None]]:
    """Show progress while the block runs: on the console, as metrics, and as lines of JSON if the
    user wants them.

    Args:
        estimates: approximate bytes of text per piece that is to be done.
        done: bytes per piece that an earlier run finished; they do not count for the rate.

    Yields:
        a function to call with each piece that is finished and what was done of it.
    """
    stop = threading.Event()
    with progress_bar(console) as bar:
        display = _Display(console, bar, estimates, done, progress)

        def show() -> None:
            goes_on = True
            while goes_on:
                goes_on = not stop.wait(POLL_SECONDS)
                display.look(is_last=not goes_on)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield lambda piece, counts: display.finished.append((piece, counts))
        finally:
            stop.set()
            thread.join()
