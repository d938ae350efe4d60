"""Steps of fixed shapes, run plainly on a CPU and as CUDA graphs on a GPU.

A byte takes hundreds of small kernels; launching each by itself takes the host longer than the GPU
needs to run it. A CUDA graph is all of them, recorded once and launched together. It repeats the
same kernels on the same memory. So a *step* reads and writes tensors that stay where they are,
makes no shape depend on values, never waits, and may be run again without changing the result. What
changes from byte to byte (positions, patches, noise) is copied into such tensors before.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.generation.fused import fusing

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, which prepares a plan for each shape."""


class StepRunner:
    """Runs steps on one device, and carries values to it and back."""

    def __init__(self, device: torch.device):
        self.device = device
        self.shape: tuple[int, ...] = ()
        """Numbers that shapes of all steps depend on: for others, steps are recorded again."""
        self._graphs: dict[tuple[object, ...], torch.cuda.CUDAGraph] = {}
        self._recording = False
        # Pinned memory by shape and dtype: to allocate it takes longer than a copy.
        self._buffers: defaultdict[tuple[object, ...], list[Tensor]] = defaultdict(list)
        self._in_use: defaultdict[tuple[object, ...], int] = defaultdict(int)
        self._fetched: dict[tuple[object, ...], Tensor] = {}
        self._asked: Tensor | None = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._stream, self._beside = torch.cuda.Stream(), torch.cuda.Stream()
                self._arrived = torch.cuda.Event()
                # All graphs share it: none leaves anything there that another one reads.
                self._pool = torch.cuda.graph_pool_handle()

    @property
    def records(self) -> bool:
        """True if steps are run as graphs."""
        return self.device.type == "cuda"

    def run(self, step: Callable[..., None], *sizes: int) -> None:
        """Run ``step(*sizes)``; on a GPU it is recorded the first time."""
        if not self.records:
            step(*sizes)
            return
        key = (step, *sizes, self.shape)
        graph = self._graphs.get(key)
        if graph is None:
            with torch.cuda.device(self.device):
                graph = self._graphs[key] = self._record(step, *sizes)
        graph.replay()

    def run_once(self, step: Callable[..., None], *sizes: int) -> None:
        """Run a step for which a graph does not pay: its shape seldom comes again."""
        if self.device.type != "cuda":
            step(*sizes)
            return
        with torch.cuda.device(self.device), sdpa_kernel(ATTENTION):
            step(*sizes)

    def forget(self) -> None:
        """Drop the graphs: a tensor that they use has moved."""
        if self._graphs:
            torch.cuda.synchronize(self.device)
            self._graphs.clear()
            # Without graphs the pool may be gone.
            self._pool = torch.cuda.graph_pool_handle()

    def _record(self, step: Callable[..., None], *sizes: int) -> torch.cuda.CUDAGraph:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._recording = True
        try:
            with sdpa_kernel(ATTENTION), fusing():
                # In a first run functions are compiled, and libraries choose kernels and take
                # memory of their own.
                self._stream.wait_stream(current)
                with torch.cuda.stream(self._stream):
                    step(*sizes)
                current.wait_stream(self._stream)
                # Other threads (a training's watchdog) may use the GPU meanwhile.
                with torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ):
                    step(*sizes)
        finally:
            self._recording = False
        return graph

    def side_by_side(self, one: Callable[[], None], other: Callable[[], None]) -> None:
        """Two parts of a step that need nothing of each other: branches of its graph."""
        if not self._recording:
            one()
            other()
            return
        current = torch.cuda.current_stream()
        self._beside.wait_stream(current)
        with torch.cuda.stream(self._beside):
            one()
        other()
        current.wait_stream(self._beside)

    def put(self, tensor: Tensor, values: np.ndarray) -> None:
        """Copy values of the host into a tensor of their shape and dtype; on an NVIDIA GPU
        without waiting. Elsewhere the copy could read what the caller has written over them."""
        source = torch.from_numpy(values)
        if self.device.type != "cuda":
            tensor.copy_(source)
            return
        assert self._asked is None, "the wait for an answer says nothing about later copies"
        pinned = self._unread(tensor)
        pinned.copy_(source)
        tensor.copy_(pinned, non_blocking=True)

    def ask(self, tensor: Tensor) -> None:
        """Let a GPU send the values of a tensor as they are now, before it does what it is given
        next; :meth:`fetch` must be the next call that copies anything."""
        if self.device.type != "cuda":
            return
        key = (tensor.shape, tensor.dtype)
        if key not in self._fetched:
            self._fetched[key] = _pinned(tensor)
        self._asked = self._fetched[key]
        self._asked.copy_(tensor, non_blocking=True)
        self._arrived.record(torch.cuda.current_stream(self.device))

    def fetch(self, tensor: Tensor) -> np.ndarray:
        """The values of a tensor, which are the caller's until the next fetch: the host waits until
        they are there."""
        if self.device.type != "cuda":
            return tensor.numpy(force=True).copy()
        if self._asked is None:
            self.ask(tensor)
        values, self._asked = self._asked, None
        self._arrived.synchronize()
        # All copies before this one are done as well.
        self._in_use.clear()
        assert values is not None and values.shape == tensor.shape
        return values.numpy()

    def _unread(self, like: Tensor) -> Tensor:
        """Pinned memory that no copy reads: two puts without a wait between them need two."""
        key = (like.shape, like.dtype)
        buffers, number = self._buffers[key], self._in_use[key]
        self._in_use[key] += 1
        if number == len(buffers):
            buffers.append(_pinned(like))
        return buffers[number]


def _pinned(like: Tensor) -> Tensor:
    """Memory of the host that a GPU copies without its help."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
