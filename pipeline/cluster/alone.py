"""Pieces of a stage in Ray tasks of their own, so that no piece suffers for another.

A worker may end in the middle of a piece: its node is lost, its memory is used up, or the content
of a file ends the process. The piece is then done again; one that has ended :data:`TRIES` workers
is *deadly*, and is not tried any further.
"""

from collections import Counter, deque
from collections.abc import Callable

import ray

from pipeline.cli.loading import loading
from pipeline.cluster.memory import bound_memory
from pipeline.cluster.pieces import PieceOutcome, StageTask, release_lost_actors, run_piece

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

    Raises:
        PipelineError: a worker could not set up what pieces share, such as a model on its GPU.
    """
    at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    work = ray.put(task)
    waiting, tries, ends = deque(pieces), Counter[int](), {}
    running: dict[ray.ObjectRef[PieceOutcome], int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            piece = waiting.popleft()
            running[_start(work, task.gpus, piece)] = piece
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
        except ray.exceptions.RayTaskError as error:  # what all pieces share could not be set up
            raise error.cause from error
    return ends


def _start(
    task: "ray.ObjectRef[StageTask]", gpus: float, piece: int
) -> "ray.ObjectRef[PieceOutcome]":
    options = _alone.options(num_cpus=1, num_gpus=gpus or None, max_retries=0)
    reference: ray.ObjectRef[PieceOutcome] = options.remote(piece, [task])
    return reference


def _ending(error: Exception) -> str:
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"used up the memory of its node, each of {TRIES} times"
    return f"ended the process that read it, each of {TRIES} times"


@ray.remote
def _alone(piece: int, reference: "list[ray.ObjectRef[StageTask]]") -> PieceOutcome:
    """Do a piece.

    Args:
        reference: of the task, in a list: an argument that is a reference would be unpacked, and
            what its functions need would be imported, before this function begins.
    """
    bound_memory()
    with loading():
        task = ray.get(reference[0])
        shared = ray.get(task.shared)
    return run_piece(piece, task.work, task.setup(shared) if task.setup else shared, task.progress)
