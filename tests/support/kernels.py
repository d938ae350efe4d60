"""Counting the kernels that a GPU would launch, without one: the operators that run on the meta
device, views left out.

A composite operator counts once if a GPU has one kernel for it (``rms_norm``,
``scaled_dot_product_attention``).
"""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.recorded_steps import VALUES_LEAVE

VIEWS = set(
    "alias as_strided chunk detach expand expand_as flatten lift_fresh narrow permute reshape select "
    "slice split split_with_sizes squeeze t transpose unbind unflatten unsqueeze view view_as "
    "view_as_complex view_as_real _unsafe_view".split()
)


class Kernels(TorchDispatchMode):
    """Counts kernels; an operator for which a GPU would be waited for, or that reads memory of the
    host, is an error: neither can be in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

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
