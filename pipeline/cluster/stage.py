"""A stage: many pieces of work of one kind, done by all workers of a cluster.

A caller writes a function that does one piece and hands it to :func:`run_stage`. A piece is known
by its number; what it needs is in ``shared`` or in storage, and its result goes to storage. Ray
Data schedules the pieces and scales the pool.

A worker may end in the middle of a piece: its node is lost, its memory is used up, or the content
of a file ends the process. Ray Data gives the block of pieces that the worker had up. What is then
without an outcome is done again, each piece in a task of its own, so that no piece suffers for
another; a piece that ends :data:`TRIES` workers more is *deadly*, and is not tried any further.
"""

import gc
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypedDict, cast

import ray
import ray.data  # before Ray is joined: its import sets log levels
from rich.console import Console

from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster.connect import connect
from pipeline.cluster.known_lines import without_known_lines
from pipeline.cluster.memory import bound_memory
from pipeline.cluster.progress import Progress, Reporter, show_progress, start_progress
from pipeline.errors import PipelineError, UnreachableFileError
from pipeline.storage.outages import say_by

TRIES = 3
"""How often a piece may end its worker before it is given up."""
COLLECT_SECONDS = 5.0
"""How long the driver waits for a piece before it looks again for garbage that holds workers."""
LEAST_BLOCKS, MOST_BLOCKS = 64, 4096
"""Blocks that Ray Data keeps account of; beyond that a block is several pieces."""
BLOCK_BYTES = 1 << 20
"""Text that is worth a block of its own: small pieces share one."""

Work = Callable[[int, Any, Reporter], str | None]
"""Does a piece, given its number, what all pieces share, and a function to report bytes to; returns
a short message for the driver or None. It has to be a module's own function, which workers can
import."""


@dataclass(frozen=True)
class StageOutcome:
    """A stage as the driver sees it when it ends; the results themselves are in storage."""

    messages: dict[int, str]
    """The messages of the pieces that have one, in the order of the pieces' numbers."""
    unreachable: list[str]
    """Why files could not be reached: the pieces that need them are not done."""
    deadly: dict[int, str]
    """How the pieces ended that are given up, because they ended their workers time and again."""


class _PieceOutcome(TypedDict):
    """A worker's message about a piece. It is a row of a Ray dataset, so that no value is None."""

    piece: int
    bytes: int
    documents: int
    rejects: int
    device_seconds: float
    message: str
    unreachable: str
    fatal: str


def _counts(outcome: _PieceOutcome) -> WorkCounts:
    return WorkCounts(
        outcome["bytes"], outcome["documents"], outcome["rejects"], outcome["device_seconds"]
    )


def run_stage(
    doing: str,
    work: Work,
    pieces: Mapping[int, int],
    shared: Any,
    console: Console,
    *,
    done: Mapping[int, int] = {},
    workers: int | None = None,
    setup: Callable[[Any], Any] | None = None,
    gpus: float = 0,
    receive: Callable[[int, str], None] | None = None,
    gives_up: bool = False,
) -> StageOutcome:
    """Have all pieces done; without a piece nothing is started, not even Ray.

    Args:
        doing: the name of the stage for the progress, such as "patching".
        work: does one piece.
        pieces: approximate bytes of text per piece, by its number.
        shared: sent to each worker process once.
        done: bytes per piece that an earlier run finished, for the progress.
        workers: how many work at a time; by default as many as the cluster has room for.
        setup: runs once per worker, which then is an actor instead of a task: ``work`` gets what
            ``setup(shared)`` returns, such as a model on its device, in place of ``shared``.
        gpus: GPUs per worker, beside its one CPU.
        receive: gets each message, with the number of its piece, as soon as it comes, in any order.
            Messages are then not kept, so that many long ones need no memory.
        gives_up: the caller can do without deadly pieces.

    Raises:
        PipelineError: the work cannot continue, or a piece is deadly that has to be done.
    """
    if not pieces:
        return StageOutcome({}, [], {})
    connect(workers)
    progress = start_progress(doing)
    task = _Task(setup, work, ray.put(shared), progress, gpus)
    messages: dict[int, str] = {}
    unreachable: dict[int, str] = {}
    left = set(pieces)
    with (
        without_known_lines(),
        show_progress(console, pieces, done, progress) as finished,
    ):

        def take(outcome: _PieceOutcome) -> None:
            piece = outcome["piece"]
            if outcome["fatal"]:
                raise PipelineError(outcome["fatal"])
            left.discard(piece)
            if outcome["unreachable"]:
                unreachable[piece] = outcome["unreachable"]
            elif outcome["message"]:
                (receive or messages.__setitem__)(piece, outcome["message"])
            finished(piece, _counts(outcome))

        before = len(left) + 1
        while left and len(left) < before:  # again as long as it helps
            before = len(left)
            with suppress(ray.exceptions.RayError):  # all of the pool is lost
                for outcome in task.in_pool({piece: pieces[piece] for piece in left}, workers):
                    take(outcome)
                break
        deadly = task.alone(sorted(left), workers, take)
    if deadly and not gives_up:
        number, how = next(iter(deadly.items()))
        raise PipelineError(f"{doing}: piece {number} {how}; see Ray's logs for more")
    return StageOutcome(
        {piece: messages[piece] for piece in sorted(messages)},
        [unreachable[piece] for piece in sorted(unreachable)],
        deadly,
    )


@dataclass(frozen=True)
class _Task:
    """The work of a stage, as Ray gets it."""

    setup: Callable[[Any], Any] | None
    work: Work
    shared: "ray.ObjectRef[Any]"
    progress: Progress
    gpus: float

    def in_pool(self, pieces: Mapping[int, int], workers: int | None) -> Iterator[_PieceOutcome]:
        """Outcomes of the pieces that Ray Data's pool did; those of workers that ended are missing.

        Raises:
            RayError: all of the pool is lost.
        """
        pool: dict[str, Any]
        if self.setup is None:
            tasks = ray.data.TaskPoolStrategy(workers) if workers else ray.data.TaskPoolStrategy()
            arguments: tuple[Any, ...] = (self.work, self.shared, self.progress)
            pool = {"fn": _in_task, "fn_args": arguments, "compute": tasks, "max_retries": 0}
        else:
            actors = _actor_pool(workers, len(pieces))
            arguments = (self.setup, self.work, self.shared, self.progress)
            pool = {"fn": _Actor, "fn_constructor_args": arguments, "compute": actors}
            # Ray Data does not replace actors that are not started again: it would wait for ever.
            pool |= {"max_restarts": -1, "max_task_retries": 0}
        with warnings.catch_warnings():
            # Ray Data has no other way yet to say how often it repeats.
            warnings.filterwarnings("ignore", ".*ray_remote_args.* is deprecated")
            outcomes = _numbers(pieces).map(**pool, num_cpus=1, num_gpus=self.gpus or None)
        try:
            for row in outcomes.iter_rows():
                yield cast(_PieceOutcome, row)
        finally:
            _release_lost_actors()

    def alone(
        self, pieces: list[int], workers: int | None, take: Callable[[_PieceOutcome], None]
    ) -> dict[int, str]:
        """Do pieces that have ended a worker, or were in a block with such a piece: each in a task
        of its own, which Ray does not repeat by itself.

        Returns:
            how those ended that are given up.
        """
        at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, tries, ends = deque(pieces), Counter[int](), {}
        running: dict[ray.ObjectRef[Any], int] = {}
        while waiting or running:
            while waiting and len(running) < at_once:
                piece = waiting.popleft()
                running[self._start(piece)] = piece
            ended, _ = ray.wait(list(running), timeout=COLLECT_SECONDS)
            if not ended:
                _release_lost_actors()
                continue
            ready = ended[0]
            piece = running.pop(ready)
            try:
                take(ray.get(ready))
            except PROCESS_ENDED as error:
                tries[piece] += 1
                if tries[piece] < TRIES:
                    waiting.append(piece)
                else:
                    ends[piece] = _ending(error)
        return ends

    def _start(self, piece: int) -> "ray.ObjectRef[Any]":
        options = _alone.options(num_cpus=1, num_gpus=self.gpus or None, max_retries=0)
        reference: ray.ObjectRef[Any] = options.remote(
            piece, self.setup, self.work, self.shared, self.progress
        )
        return reference


PROCESS_ENDED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)
"""The errors that tell the end of the process that did a task."""


def _ending(error: Exception) -> str:
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"used up the memory of its node, each of {TRIES} times"
    return f"ended the process that read it, each of {TRIES} times"


@ray.remote
def _alone(
    piece: int,
    setup: Callable[[Any], Any] | None,
    work: Work,
    shared: Any,
    progress: Progress,
) -> _PieceOutcome:
    bound_memory()
    return run_piece(piece, work, setup(shared) if setup else shared, progress)


def run_piece(piece: int, work: Work, shared: Any, progress: Progress) -> _PieceOutcome:
    """Do one piece in a worker.

    Errors that a user can act on become part of the outcome: Ray would wrap and repeat them.
    """
    report = Reporter(progress, piece)
    say_by(report.say)
    message, unreachable, fatal = None, "", ""
    try:
        message = work(piece, shared, report)
    except UnreachableFileError as error:
        unreachable = str(error)
    except PipelineError as error:
        fatal = str(error)
    done = report.finish()
    return {
        "piece": piece,
        "bytes": done.bytes,
        "documents": done.documents,
        "rejects": done.rejects,
        "device_seconds": done.device_seconds,
        "message": message or "",
        "unreachable": unreachable,
        "fatal": fatal,
    }


def unshared_storage(where: str) -> PipelineError:
    """The error to raise when all pieces were done and the driver misses what they committed.

    Args:
        where: the flag and the place, such as "--output /data/shards".
    """
    return PipelineError(
        f"{where}: what workers committed cannot be seen from here; is it on storage that all "
        "nodes share?"
    )


def _numbers(pieces: Mapping[int, int]) -> ray.data.Dataset:
    """The numbers of the pieces, spread over a bounded number of blocks."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # what they held is done again, each piece alone
    worth = sum(pieces.values()) // BLOCK_BYTES
    blocks = min(len(pieces), max(worth, LEAST_BLOCKS), MOST_BLOCKS)
    return ray.data.from_items(sorted(pieces), override_num_blocks=blocks)


def _release_lost_actors() -> None:
    """Let go of the actors of a pool that has ended.

    Ray ends an actor when its last handle is gone. Ray Data keeps the handle of an actor whose task
    failed in objects that refer to one another, and these only the garbage collector frees. Until
    then Ray starts such an actor again, on the node that is left when its own was lost, and it
    holds the CPU or the GPU that the pieces to be repeated wait for.
    """
    gc.collect()


def _actor_pool(workers: int | None, pieces: int) -> ray.data.ActorPoolStrategy:
    """As many actors as were asked for; without a number, as many as the cluster has room for."""
    if workers is not None:
        return ray.data.ActorPoolStrategy(size=min(workers, pieces))
    return ray.data.ActorPoolStrategy(min_size=1, max_size=pieces)


class _Actor:
    """A worker that keeps what ``setup`` made."""

    def __init__(
        self,
        setup: Callable[[Any], Any],
        work: Work,
        shared: "ray.ObjectRef[Any]",
        progress: Progress,
    ):
        bound_memory()
        self._state = setup(ray.get(shared))
        self._work, self._progress = work, progress

    def __call__(self, row: dict[str, Any]) -> _PieceOutcome:
        return run_piece(int(row["item"]), self._work, self._state, self._progress)


def _in_task(
    row: dict[str, Any], work: Work, shared: "ray.ObjectRef[Any]", progress: Progress
) -> _PieceOutcome:
    return run_piece(int(row["item"]), work, _fetched(shared), progress)


@lru_cache(maxsize=1)
def _fetched(shared: "ray.ObjectRef[Any]") -> Any:
    """The value that the pieces of a stage share; a worker process, which does many pieces, fetches
    it once."""
    bound_memory()
    return ray.get(shared)
