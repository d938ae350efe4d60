"""Bytes that this process sends to others, by what is sent."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from train.sharded_tables import ShardedTables

Sent = Callable[[int, dict[str, Any]], float]
"""Bytes that one of so many ranks sends in a collective with these arguments."""

COLLECTIVES: dict[str, Sent] = {
    # Releases of PyTorch differ in names.
    **dict.fromkeys(
        ("all_gather_into_tensor", "all_gather_single"),
        lambda ranks, given: (ranks - 1) * _nth(given, 1).nbytes,
    ),
    **dict.fromkeys(
        ("reduce_scatter_tensor", "reduce_scatter_single"),
        lambda ranks, given: (ranks - 1) / ranks * _nth(given, 1).nbytes,
    ),
    "all_reduce": lambda ranks, given: 2 * (ranks - 1) / ranks * given["tensor"].nbytes,
    "all_to_all_single": lambda ranks, given: (
        (
            sum(given["input_split_sizes"])
            - given["input_split_sizes"][dist.get_rank(given["group"])]
        )
        * _nth(given, 1).element_size()
    ),
}


def _nth(given: dict[str, Any], index: int) -> Any:
    return [*given.values()][index]


@contextmanager
def counted_traffic() -> Iterator[Counter[str]]:
    """Bytes by the name of an FSDP unit, or "sharded tables"; "" has what belongs to neither."""
    sent: Counter[str] = Counter()
    units = [""]

    def within(name: Callable[[Any], str], original: Any) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            units.append(name(self))
            try:
                return original(self, *args, **kwargs)
            finally:
                units.pop()

        return method

    def counting(original: Any, bytes_of: Sent) -> Any:
        signature = inspect.signature(original)

        def collective(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            ranks = dist.get_world_size(given.get("group"))
            sent[units[-1]] += round(bytes_of(ranks, given))
            return original(*args, **kwargs)

        return collective

    with ExitStack() as stack:
        for name, bytes_of in COLLECTIVES.items():
            if hasattr(dist, name):
                counted = counting(getattr(dist, name), bytes_of)
                stack.enter_context(patch.object(dist, name, counted))
        for owner, methods, name_of in (
            (FSDPParamGroup, ("unshard", "post_backward"), lambda unit: unit._module_fqn or "root"),
            (ShardedTables, ("gather_ids", "_exchange"), lambda tables: "sharded tables"),
        ):
            for method in methods:
                wrapped = within(name_of, getattr(owner, method))
                stack.enter_context(patch.object(owner, method, wrapped))
        yield sent
