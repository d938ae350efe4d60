"""All ranks together exchange small values and agree on errors."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from model.checkpoints.files import CheckpointError
from pipeline.errors import PipelineError
from pipeline.storage.outages import PATIENCE_S

T = TypeVar("T")
TIMEOUT_S = 2 * round(PATIENCE_S)
"""Seconds that ranks wait for one another. One of them may be waiting for storage (PATIENCE_S), or
be the last to write its part of a step; after torchtitan's 100 the others would end the run."""
LOST_CONNECTION = (
    "by peer",
    "timed out",
    "timeout",
    "remote process",
    "aborted",
    "socket",
    "broken pipe",
)
"""Words of gloo, NCCL and the store where ranks meet, when another rank is gone or hangs."""


def is_lost_connection(error: object) -> bool:
    """True for an error, or its text, of a rank that fails because another one is gone or hangs."""
    text = str(error).lower()  # a kernel may time out as well
    return "cuda error" not in text and any(word in text for word in LOST_CONNECTION)


def gathered(value: Any) -> list[Any]:
    """The value of each rank, on all ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_rank_0(call: Callable[[], T]) -> T:
    """Call a function on rank 0 alone: storage is asked once, and all ranks go on alike.

    Returns:
        its result, on all ranks.

    Raises:
        PipelineError, CheckpointError: the function failed, on all ranks alike: none waits for
            another.
    """
    if not dist.is_initialized():
        return call()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = call()
        except (PipelineError, CheckpointError) as raised:
            answer[1] = raised
        except Exception as raised:  # as an error that all ranks can unpickle
            answer[1] = PipelineError(f"rank 0: {type(raised).__name__}: {raised}")
    dist.broadcast_object_list(answer)
    result, error = answer
    if error is not None:
        raise error
    return result
