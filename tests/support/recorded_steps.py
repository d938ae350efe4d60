"""CUDA graphs on a CPU: steps are recorded once, operator by operator, and replayed on the same
memory.

What is replayed is what a CUDA graph would repeat: the operators that ran when the step was
recorded, with the shapes, the numbers and the places in memory of that time. Nothing of the step's
Python runs again. So a step that depends on anything else, such as a number of the host that has
changed or a tensor that has moved, gives another result than it should.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.generation.graphs import StepRunner

VALUES_LEAVE = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}
VALUES_LEAVE |= {"unique", "_unique2", "bincount"}
"""Operators that make the host wait for values, or give shapes that depend on them."""


class Recording(TorchDispatchMode):
    """Notes the operators that run, and where their results lie."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        assert name not in VALUES_LEAVE, f"{name}: a step must not depend on values"
        before = {id(x) for x in tree_leaves((args, kwargs))}
        places = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        # Views of the arguments stay right by themselves.
        new = [x for x in tensors if id(x) not in before and _place(x) not in places]
        if new or function._schema.is_mutable:
            self.calls.append((function, args, kwargs or {}, new))
        return result

    def replay(self) -> None:
        """Run the operators again; new results go where the first ones are."""
        for function, args, kwargs, places in self.calls:
            result = function(*args, **kwargs)
            if places:
                tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
                for place, value in zip(places, tensors, strict=True):
                    place.copy_(value)


class RecordingRunner(StepRunner):
    """A StepRunner that records on the CPU."""

    recordings: int = 0
    """How many steps all runners have recorded."""
    replays: int = 0

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._recorded: dict[tuple[object, ...], Recording] = {}

    @property
    def records(self) -> bool:
        return True

    def run(self, step: Callable[..., None], *sizes: int) -> None:
        key = (step, *sizes)
        if key not in self._recorded:
            for _ in range(2):  # steps may be run again
                step(*sizes)
            with Recording() as recording:
                step(*sizes)
            self._recorded[key] = recording
            RecordingRunner.recordings += 1
        RecordingRunner.replays += 1
        self._recorded[key].replay()

    def forget(self) -> None:
        self._recorded.clear()


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
