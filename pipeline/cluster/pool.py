"""Pieces of a stage in a pool of Ray Data's, whose workers do one after the other.

Ray Data takes half a second to import and more to start, so that only stages with more pieces than
workers bring it along.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import ray
import ray.data

from pipeline.cluster.memory import bound_memory
from pipeline.cluster.pieces import (
    PieceOutcome,
    StageTask,
    Work,
    fetched,
    release_lost_actors,
    run_piece,
)
from pipeline.cluster.progress import Progress

LEAST_BLOCKS, MOST_BLOCKS = 64, 4096
"""Blocks that Ray Data keeps account of; beyond that a block is several pieces."""
BLOCK_BYTES = 1 << 20
"""Text that is worth a block of its own: small pieces share one."""

# It logs each worker that ends; the stage does that worker's pieces again, or names them. (The
# import of Ray Data sets levels, so that this comes after it.)
logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def in_pool(
    task: StageTask, pieces: Mapping[int, int], workers: int | None
) -> Iterator[PieceOutcome]:
    """Outcomes of the pieces that Ray Data's pool did; those of workers that ended are missing.

    Raises:
        RayError: all of the pool is lost.
    """
    pool: dict[str, Any]
    if task.setup is None:
        tasks = ray.data.TaskPoolStrategy(workers) if workers else ray.data.TaskPoolStrategy()
        arguments: tuple[Any, ...] = (task.work, task.shared, task.progress)
        pool = {"fn": _in_task, "fn_args": arguments, "compute": tasks, "max_retries": 0}
    else:
        actors = _actor_pool(workers, len(pieces))
        arguments = (task.setup, task.work, task.shared, task.progress)
        pool = {"fn": _Actor, "fn_constructor_args": arguments, "compute": actors}
        # Ray Data does not replace actors that are not started again: it would wait for ever.
        pool |= {"max_restarts": -1, "max_task_retries": 0}
    with warnings.catch_warnings():
        # Ray Data has no other way yet to say how often it repeats.
        warnings.filterwarnings("ignore", ".*ray_remote_args.* is deprecated")
        outcomes = _numbers(pieces).map(**pool, num_cpus=1, num_gpus=task.gpus or None)
    try:
        for row in outcomes.iter_rows():
            yield cast(PieceOutcome, row)
    finally:
        release_lost_actors()


def _numbers(pieces: Mapping[int, int]) -> ray.data.Dataset:
    """The numbers of the pieces, spread over a bounded number of blocks."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # what they held is done again, each piece alone
    worth = sum(pieces.values()) // BLOCK_BYTES
    blocks = min(len(pieces), max(worth, LEAST_BLOCKS), MOST_BLOCKS)
    return ray.data.from_items(sorted(pieces), override_num_blocks=blocks)


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

    def __call__(self, row: dict[str, Any]) -> PieceOutcome:
        return run_piece(int(row["item"]), self._work, self._state, self._progress)


def _in_task(
    row: dict[str, Any], work: Work, shared: "ray.ObjectRef[Any]", progress: Progress
) -> PieceOutcome:
    return run_piece(int(row["item"]), work, fetched(shared), progress)
