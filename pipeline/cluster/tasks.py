"""Independent pieces of work that take long, such as trainings: a process of Ray's for each."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from pipeline.cluster.known_lines import without_known_lines
from pipeline.errors import PipelineError, message_of

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def in_processes(
    function: Callable[[Item], Outcome],
    items: Sequence[Item],
    *,
    at_once: int,
    num_cpus: float,
    num_gpus: float,
) -> Iterator[tuple[Item, Outcome | PipelineError]]:
    """Call a function with each item, in a process of its own, and yield what comes of it as the
    calls end. Ray has been joined.

    Args:
        at_once: calls that run together, at most.
        num_cpus, num_gpus: what each call takes up.

    Yields:
        the item, with what the function returned, or an error if the process ended without an
        answer, which Ray has tried three times. Exceptions of the function are raised as they are.
    """
    # The process ends with the call, and gives back the memory and all state of the libraries.
    options: Any = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_calls": 1, "max_retries": 2}
    task = ray.remote(**options)(function)
    waiting, running = list(items), dict[Any, Item]()
    with without_known_lines():
        while waiting or running:
            while waiting and len(running) < at_once:
                item = waiting.pop(0)
                running[task.remote(item)] = item
            (ended,), _ = ray.wait(list(running), num_returns=1)
            item = running.pop(ended)
            try:
                yield item, ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                yield item, PipelineError(f"the process ended: {message_of(error)}")
