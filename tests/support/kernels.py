"""Counting the kernels that a GPU would launch, without one: the operators that run on the meta
device, views left out.

A composite operator counts once if a GPU has one kernel for it (``rms_norm``,
``scaled_dot_product_attention``), and so does a function of :mod:`model.generation.fused`, which is
compiled there.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.generation.fused import Fused
from model.generation.graphs import StepRunner
from model.generation.writer import Writer
from support.recorded_steps import VALUES_LEAVE

# fmt: off
VIEWS = {
    "alias", "as_strided", "chunk", "detach", "expand", "expand_as", "flatten", "lift_fresh",
    "narrow", "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze",
    "t", "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as", "view_as_complex",
    "view_as_real", "_unsafe_view",
}
# fmt: on


class Kernels(TorchDispatchMode):
    """Counts kernels; an operator for which a GPU would be waited for, or that reads memory of the
    host, is an error: neither can be in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "Kernels":
        super().__enter__()
        plain, kernels = Fused.__call__, self

        def counted(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            before = kernels.counts.copy()
            result = plain(function, *args, **kwargs)
            kernels.counts = before
            kernels.counts[function.__name__] += 1
            return result

        self._patched = patch.object(Fused, "__call__", counted)
        self._patched.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._patched.stop()
        super().__exit__(*error)

    @property
    def total(self) -> int:
        """Kernels so far."""
        return self.counts.total()

    def __torch_dispatch__(self, function: Any, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        assert name not in VALUES_LEAVE, f"{name} depends on values"
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and tensor.dim():
                assert not tensor.is_cpu, f"{name} reads memory of the host"
        if name not in VIEWS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class CountingRunner(StepRunner):
    """Counts what the host would do with a GPU for each byte, on the meta device: launches (of
    graphs, of copies, and of kernels by themselves) and waits.

    The values that the host waits for are random: every fourth or fifth byte ends a patch.
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.launches = self.waits = 0
        self._random = torch.Generator().manual_seed(0)

    @property
    def records(self) -> bool:
        return True

    def run(self, step: Callable[..., None], *sizes: int) -> None:
        self.launches += 1  # what a step does on the meta device is of no consequence

    def put(self, tensor: torch.Tensor, values: np.ndarray) -> None:
        assert not tensor.is_cpu and values.shape == tensor.shape
        self.launches += 1

    def ask(self, tensor: torch.Tensor) -> None:
        """Counted when it is fetched."""

    def fetch(self, tensor: torch.Tensor) -> np.ndarray:
        self.launches += 1
        self.waits += 1
        values = torch.full(tensor.shape, 65.0)
        values[..., -1] = torch.rand(tensor.shape[:-1], generator=self._random) / 0.78
        return values.numpy()


def count_per_byte(writer: Writer, count: int) -> tuple[float, float]:
    """Launches and waits per byte of a batch that writes; entropies above 1 end patches."""
    runner = writer.state.runner
    assert isinstance(runner, CountingRunner)
    runner.launches = runner.waits = 0
    alone = _Alone()
    with alone:
        for _ in range(count):
            writer.write()
    return (runner.launches + alone.count) / count, runner.waits / count


class _Alone(TorchDispatchMode):
    """Counts operators on a device, which are kernels that are launched by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        name = function.overloadpacket.__name__
        self.count += name not in VIEWS and any(not tensor.is_cpu for tensor in tensors)
        return result
