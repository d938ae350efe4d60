"""Pieces of a stage in Ray tasks of their own, so that no piece suffers for another.

A worker may end in the middle of a piece: its node is lost, its memory is used up, or the content
of a file ends the process. The piece is then done again; one that has ended :data:`TRIES` workers
is *deadly*, and is not tried any further.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import ray

from pipeline.cluster.memory import bound_memory
from pipeline.cluster.pieces import PieceOutcome, StageTask, Work, release_lost_actors, run_piece
from pipeline.cluster.progress import Progress

TRIES = 3
"""How often a piece may end its worker before it is given up."""
COLLECT_SECONDS = 5.0
"""How long the driver waits for a piece before it looks again for garbage that holds workers."""
PROCESS_ENDED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)
"""The errors that tell the end of the process that did a task."""


def do_alone(
    task: StageTask, pieces: list[int], workers: int | None, take: Callable[[PieceOutcome], None]
) -> dict[int, str]:
    """Do each piece in a task of its own, which Ray does not repeat by itself: all pieces of a
    small stage, and of others those that ended a worker, or were in a block with such a piece.

    Returns:
        how those ended that are given up.
    """
    at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, tries, ends = deque(pieces), Counter[int](), {}
    running: dict[ray.ObjectRef[Any], int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            piece = waiting.popleft()
            running[_start(task, piece)] = piece
        ended, _ = ray.wait(list(running), timeout=COLLECT_SECONDS)
        if not ended:
            release_lost_actors()
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


def _start(task: StageTask, piece: int) -> "ray.ObjectRef[Any]":
    options = _alone.options(num_cpus=1, num_gpus=task.gpus or None, max_retries=0)
    reference: ray.ObjectRef[Any] = options.remote(
        piece, task.setup, task.work, task.shared, task.progress
    )
    return reference


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
) -> PieceOutcome:
    bound_memory()
    return run_piece(piece, work, setup(shared) if setup else shared, progress)
