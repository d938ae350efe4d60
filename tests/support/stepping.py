"""Two writers whose operations on storage a test puts in an order of its choice.

Each writer is a thread. Before every operation on its filesystem, and in every sleep, it stops at a
gate until the scheduler lets it pass; so exactly one writer runs at a time, and a run is a sequence
of choices. :func:`orders` tries all sequences, by going back to the last choice that had another
way. Time is virtual: it passes only when a writer that sleeps is chosen.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Killed(BaseException):
    """A writer's process has ended: nothing of it runs any more, no clean-up either."""


class Writer:
    """One of the writers, as the scheduler sees it."""

    def __init__(self, schedule: "Schedule", name: str, clock_offset: float):
        self.name, self.steps = name, 0
        self.clock_offset = clock_offset
        self.wakes: float | None = None
        """Virtual time until which it sleeps; None if it is about to use the storage."""
        self.kill_after: int | None = None
        """Operations after which it is killed."""
        self.ended = False
        self.result: Any = None
        self._schedule = schedule
        self._may_pass = threading.Semaphore(0)

    def gate(self, wakes: float | None = None) -> None:
        """Wait to be chosen."""
        self.wakes = wakes
        self._schedule.arrived.release()
        self._may_pass.acquire()
        if self.kill_after is not None and self.steps >= self.kill_after:
            raise Killed
        self.steps += 1

    def let_pass(self) -> None:
        self._may_pass.release()

    def run(self, program: Callable[["Writer"], Any]) -> None:
        try:
            self.gate()
            self.result = program(self)
        except Killed:
            self.result = Killed
        except BaseException as error:
            self.result = error
        self.ended = True
        self._schedule.arrived.release()


class Schedule:
    """One run: the writers, the virtual time, and the choices."""

    def __init__(self, choose: Callable[[int], int], *, sleepers_last: bool):
        """
        Args:
            choose: one of so many writers that can go on.
            sleepers_last: a writer that sleeps goes on only when all others sleep longer: no other
                writer stops between two operations for as long as this one sleeps.
        """
        self.now = 0.0
        self.arrived = threading.Semaphore(0)
        self.writers: list[Writer] = []
        self._choose, self._sleepers_last = choose, sleepers_last

    def add(self, name: str, clock_offset: float = 0.0) -> Writer:
        self.writers.append(Writer(self, name, clock_offset))
        return self.writers[-1]

    @property
    def current(self) -> Writer:
        """The writer whose thread this is."""
        name = threading.current_thread().name
        return next(writer for writer in self.writers if writer.name == name)

    def run(self, *programs: Callable[[Writer], Any]) -> None:
        pairs = list(zip(self.writers, programs, strict=True))
        threads = [
            threading.Thread(target=writer.run, args=(program,), name=writer.name, daemon=True)
            for writer, program in pairs
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert self.arrived.acquire(timeout=60)
        while ready := self._ready():
            writer = ready[self._choose(len(ready)) if len(ready) > 1 else 0]
            if writer.wakes is not None:
                self.now = max(self.now, writer.wakes)
            writer.let_pass()
            assert self.arrived.acquire(timeout=60)

    def _ready(self) -> list[Writer]:
        ready = [writer for writer in self.writers if not writer.ended]
        if self._sleepers_last and any(writer.wakes is None for writer in ready):
            return [writer for writer in ready if writer.wakes is None]
        if self._sleepers_last and ready:
            first = min(writer.wakes or 0.0 for writer in ready)
            return [writer for writer in ready if writer.wakes == first]
        return ready

    # What stands for the module ``time`` in the code under test.
    def monotonic(self) -> float:
        return self.now + self.current.clock_offset

    def sleep(self, seconds: float) -> None:
        self.current.gate(self.now + seconds)


class SteppedFileSystem:
    """A filesystem of one writer, each of whose operations is a step."""

    def __init__(self, filesystem: Any, writer: Writer, *, ignores_conditions: bool = False):
        """
        Args:
            ignores_conditions: a file is replaced where it should only be created, as some S3
                servers do.
        """
        self._filesystem, self._writer = filesystem, writer
        self._ignores_conditions = ignores_conditions

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._filesystem, name)
        if name.startswith("_") or name == "invalidate_cache" or not callable(value):
            return value

        def step(*arguments: Any, **options: Any) -> Any:
            self._writer.gate()
            if name == "pipe_file" and self._ignores_conditions:
                options.pop("mode", None)
            self._filesystem.invalidate_cache()  # each writer has its own in reality
            return value(*arguments, **options)

        return step


def orders() -> Iterator[Callable[[int], int]]:
    """All ways to choose, depth first, but those that begin with the second writer: the two are
    alike. Each is to be used for one run."""
    path: list[list[int]] = []
    """Of each choice: what was chosen, and of how many."""
    while True:
        place = 0

        def choose(count: int) -> int:
            nonlocal place
            if place == len(path):
                path.append([0, count])
            place += 1
            return path[place - 1][0]

        yield choose
        while path and path[-1][0] + 1 >= path[-1][1]:
            path.pop()
        if len(path) < 2:
            return
        path[-1][0] += 1


def random_orders(seeds: Sequence[int]) -> Iterator[Callable[[int], int]]:
    """Ways to choose at random. A writer goes on for some steps before the other one does."""
    for seed in seeds:
        draw = random.Random(seed)
        turn, left = 0, 0

        def choose(count: int, draw: random.Random = draw) -> int:
            nonlocal turn, left
            if left == 0:
                turn, left = draw.randrange(2), draw.randint(1, 6)
            left -= 1
            return turn % count

        yield choose
