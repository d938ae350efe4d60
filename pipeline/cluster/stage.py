"""Work in pieces on a cluster: Ray Data spreads it, the driver shows how far it is.

Ray schedules, scales the pool and repeats what a lost node had not committed. A piece of work is
known by its number; what is needed for it, and what comes of it, is in storage.
"""

from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.data  # before Ray is joined: its import sets log levels
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from pipeline.cluster.progress import Board, Reporter, shown
from pipeline.errors import PipelineError, UnreachableFileError

LEAST_BLOCKS, MOST_BLOCKS = 64, 4096
"""Blocks that Ray Data keeps account of; beyond that a block is several pieces."""
BLOCK_BYTES = 1 << 20
"""Text that is worth a block of its own: small pieces share one."""


def attempt(
    row: Mapping[str, Any],
    board: "ray.actor.ActorHandle",
    work: Callable[[int, Reporter], str | None],
) -> dict[str, Any]:
    """What a worker does with a row of :func:`work_off`: ``work`` on its piece of work.

    Args:
        work: what it returns, if anything, is for the driver; what is large belongs into storage.

    Returns:
        what the driver has to know of it. Errors that a user can act on are among that: Ray would
        wrap and repeat them.
    """
    piece = int(row["item"])
    report = Reporter(board, piece)
    outcome = {"piece": piece, "unreachable": "", "fatal": "", "result": ""}
    try:
        outcome["result"] = work(piece, report) or ""
    except UnreachableFileError as error:
        outcome["unreachable"] = str(error)
    except PipelineError as error:
        outcome["fatal"] = str(error)
    return outcome | {"bytes": report.done}


def new_board() -> "ray.actor.ActorHandle":
    """Where workers tell how far they are."""
    # It must live as long as the driver does: keep it off nodes that may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def actor_pool(num_workers: int | None, pieces: int) -> ray.data.ActorPoolStrategy:
    """As many actors as were asked for; without a number, as many as the cluster has room for."""
    if num_workers is not None:
        return ray.data.ActorPoolStrategy(size=min(num_workers, pieces))
    return ray.data.ActorPoolStrategy(min_size=1, max_size=pieces)


def work_off(
    pieces: Mapping[int, int],
    done: Mapping[int, int],
    console: Console,
    doing: str,
    board: "ray.actor.ActorHandle",
    worker: Any,
    receive: Callable[[int, str], None] = lambda piece, result: None,
    **options: Any,
) -> list[str]:
    """Have all pieces of work done.

    Args:
        pieces: by number, the bytes of text in each, about.
        done: bytes of pieces that an earlier run finished, for the progress.
        doing: what is done, as in "patching".
        worker: a class or function for Ray Data's ``map`` that returns what :func:`attempt` does.
        receive: called with each piece that is done and what the work on it returned.
        options: of Ray Data's ``map``.

    Returns:
        what is said of files that could not be reached; the pieces that need them are left.

    Raises:
        PipelineError: the work cannot go on.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    worth = sum(pieces.values()) // BLOCK_BYTES
    blocks = min(len(pieces), max(worth, LEAST_BLOCKS), MOST_BLOCKS)
    items = ray.data.from_items(sorted(pieces), override_num_blocks=blocks)
    outcomes = items.map(worker, num_cpus=1, **options)
    unreachable = []
    with shown(console, doing, pieces, done, board) as finished:
        for outcome in outcomes.iter_rows():
            if outcome["fatal"]:
                raise PipelineError(outcome["fatal"])
            if outcome["unreachable"]:
                unreachable.append(outcome["unreachable"])
            else:
                receive(outcome["piece"], outcome["result"])
            finished(outcome["piece"], outcome["bytes"])
    ray.kill(board)  # or its process would stay for the stages to come
    return unreachable
