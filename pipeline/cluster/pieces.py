"""A piece of a stage's work, as a worker does it, and what the driver learns of it."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypedDict

import ray

from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster.memory import bound_memory
from pipeline.cluster.progress import Progress, Reporter
from pipeline.errors import PipelineError, UnreachableFileError
from pipeline.storage.outages import say_by

Work = Callable[[int, Any, Reporter], str | None]
"""Does a piece, given its number, what all pieces share, and a function to report bytes to; returns
a short message for the driver or None. It has to be a module's own function, which workers can
import."""


class PieceOutcome(TypedDict):
    """A worker's message about a piece. It is a row of a Ray dataset, so that no value is None."""

    piece: int
    bytes: int
    documents: int
    rejects: int
    device_seconds: float
    message: str
    unreachable: str
    fatal: str


def counts_of(outcome: PieceOutcome) -> WorkCounts:
    """The counts within an outcome."""
    return WorkCounts(
        outcome["bytes"], outcome["documents"], outcome["rejects"], outcome["device_seconds"]
    )


@dataclass(frozen=True)
class StageTask:
    """The work of a stage, as Ray gets it."""

    setup: Callable[[Any], Any] | None
    work: Work
    shared: "ray.ObjectRef[Any]"
    progress: Progress
    gpus: float
    """GPUs that a worker needs, beside one CPU."""


def run_piece(piece: int, work: Work, shared: Any, progress: Progress) -> PieceOutcome:
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


@lru_cache(maxsize=1)
def fetched(shared: "ray.ObjectRef[Any]") -> Any:
    """The value that the pieces of a stage share; a worker process, which does many pieces, fetches
    it once."""
    bound_memory()
    return ray.get(shared)


def release_lost_actors() -> None:
    """Let go of the actors of a pool that has ended.

    Ray ends an actor when its last handle is gone. Ray Data keeps the handle of an actor whose task
    failed in objects that refer to one another, and these only the garbage collector frees. Until
    then Ray starts such an actor again, on the node that is left when its own was lost, and it
    holds the CPU or the GPU that the pieces to be repeated wait for.
    """
    gc.collect()
