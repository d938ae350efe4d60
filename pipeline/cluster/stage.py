"""A stage: many pieces of work of one kind, done by all workers of a cluster.

A caller writes a function that does one piece and hands it to :func:`run_stage`. A piece is known
by its number; what it needs is in ``shared`` or in storage, and its result goes to storage. Where
there are more pieces than workers, Ray Data schedules them and scales a pool
(:mod:`pipeline.cluster.pool`); otherwise each piece is a task of Ray's
(:mod:`pipeline.cluster.alone`), which spares a small run the start of Ray Data.

A worker may end in the middle of a piece: its node is lost, its memory is used up, or the content
of a file ends the process. Ray Data gives the block of pieces that the worker had up. What is then
without an outcome is done again, each piece in a task of its own.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from rich.console import Console

from pipeline.cluster.alone import do_alone
from pipeline.cluster.connect import connect
from pipeline.cluster.known_lines import without_known_lines
from pipeline.cluster.pieces import PieceOutcome, StageTask, Work, counts_of
from pipeline.cluster.progress import show_progress, start_progress
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class StageOutcome:
    """A stage as the driver sees it when it ends; the results themselves are in storage."""

    messages: dict[int, str]
    """The messages of the pieces that have one, in the order of the pieces' numbers."""
    unreachable: list[str]
    """Why files could not be reached: the pieces that need them are not done."""
    deadly: dict[int, str]
    """How the pieces ended that are given up, because they ended their workers time and again."""


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
        setup: runs once per worker, an actor or the task of an only piece: ``work`` gets what
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
    task = StageTask(setup, work, ray.put(shared), progress, gpus)
    messages: dict[int, str] = {}
    unreachable: dict[int, str] = {}
    left = set(pieces)
    with (
        without_known_lines(),
        show_progress(console, pieces, done, progress) as finished,
    ):

        def take(outcome: PieceOutcome) -> None:
            piece = outcome["piece"]
            if outcome["fatal"]:
                raise PipelineError(outcome["fatal"])
            left.discard(piece)
            if outcome["unreachable"]:
                unreachable[piece] = outcome["unreachable"]
            elif outcome["message"]:
                (receive or messages.__setitem__)(piece, outcome["message"])
            finished(piece, counts_of(outcome))

        before = len(left) + 1
        while _room(workers, gpus) < len(left) < before:  # again as long as it helps
            from pipeline.cluster.pool import in_pool

            before = len(left)
            with suppress(ray.exceptions.RayError):  # all of the pool is lost
                for outcome in in_pool(task, {piece: pieces[piece] for piece in left}, workers):
                    take(outcome)
                break
        deadly = do_alone(task, sorted(left), workers, take)
    if deadly and not gives_up:
        number, how = next(iter(deadly.items()))
        raise PipelineError(f"{doing}: piece {number} {how}; see Ray's logs for more")
    return StageOutcome(
        {piece: messages[piece] for piece in sorted(messages)},
        [unreachable[piece] for piece in sorted(unreachable)],
        deadly,
    )


def _room(workers: int | None, gpus: float) -> int:
    """Workers that the cluster has room for now, or that were asked for if these are fewer."""
    resources = ray.cluster_resources()
    room = resources.get("CPU", 0)
    if gpus:
        room = min(room, resources.get("GPU", 0) / gpus)
    return int(min(workers or room, room))


def unshared_storage(where: str) -> PipelineError:
    """The error to raise when all pieces were done and the driver misses what they committed.

    Args:
        where: the flag and the place, such as "--output /data/shards".
    """
    return PipelineError(
        f"{where}: what workers committed cannot be seen from here; is it on storage that all "
        "nodes share?"
    )
