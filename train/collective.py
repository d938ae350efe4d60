"""All ranks together exchange small values and agree on errors."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from model.checkpoints.files import CheckpointError
from pipeline.errors import PipelineError

T = TypeVar("T")


def gathered(value: Any) -> list[Any]:
    """The value of each rank, on all ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_rank_0(call: Callable[[], T]) -> T | None:
    """Call a function on rank 0 alone.

    Returns:
        its result on rank 0, and None elsewhere.

    Raises:
        PipelineError, CheckpointError: the function failed, on all ranks alike: none waits for
            another.
    """
    result: T | None = None
    error: list[PipelineError | CheckpointError | None] = [None]
    if dist.get_rank() == 0:
        try:
            result = call()
        except (PipelineError, CheckpointError) as raised:
            error = [raised]
        except Exception as raised:  # as an error that all ranks can unpickle
            error = [PipelineError(f"rank 0: {type(raised).__name__}: {raised}")]
    dist.broadcast_object_list(error)
    if error[0] is not None:
        raise error[0]
    return result
