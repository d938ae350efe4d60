"""Kernels that inductor generates for a GPU, run on a CPU by Triton's interpreter.

Everything up to the source of the kernels is what a process with an H200 does; then numpy executes
that source, tile by tile. So it is the real kernel whose values are compared, but not its speed,
its memory or the rounding of a card. Triton has to be imported with TRITON_INTERPRET=1, for which
the process must be a new one: :func:`support.interpreted_process.run_interpreted` starts it.
"""

import ctypes
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

assert os.environ.get("TRITON_INTERPRET") == "1", "set it before Triton is imported"

import numpy as np
import torch
import torch._higher_order_ops.flex_attention
import torch.utils._triton
import triton
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config, ir
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppCodeCache, PyCodeCache
from torch._inductor.compile_fx import compile_fx
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses import fake_tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.interpreter import ReduceOps

FORMS = {
    "type": "cuda",
    "index": 0,
    "multi_processor_count": 132,
    "cc": 90,
    "major": 9,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
}
"""What inductor asks about a card; the answers are those of an H200."""
H200 = SimpleNamespace(
    **FORMS,
    **{"minor": 0, "name": "NVIDIA H200", "gcnArchName": "", "total_memory": 141 << 30},
    **{"shared_memory_per_block": 49152, "shared_memory_per_block_optin": 232448},
    **{"shared_memory_per_multiprocessor": 233472, "L2_cache_size": 50 << 20},
)


class _Driver:
    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


class _SourceWrittenError(Exception):
    """The source is there: nothing has to be compiled from it."""


def _strided_like(out: Tensor, query_strides: list[int]) -> Tensor:
    # FlexAttention's own copies values, for which a build for CPUs lacks the device.
    strides, step = [0] * out.dim(), 1
    for dim in ir.get_fill_order(query_strides):
        strides[dim], step = step, step * out.shape[dim]
    return torch.empty_strided(out.shape, strides, dtype=out.dtype, device=out.device)


def _lost_unless_written(shape: Any, strides: Any, dtype: torch.dtype) -> Tensor:
    lost = torch.nan if dtype.is_floating_point else 99
    return torch.empty_strided(shape, strides, dtype=dtype).fill_(lost)


def _interpret(_self: AsyncCompile, name: str, source: str, *_args: Any, **_kw: Any) -> Any:
    # CUDA's library of functions is machine code; Triton has these itself.
    source = re.sub(r"libdevice\.(exp|log|cos|sin|sqrt|rsqrt)\(", r"tl_math.\1(", source)
    return getattr(PyCodeCache.load(source), name)


_reduce_by_elements = ReduceOps.generic_reduce


def _reduce_by_slices(self: ReduceOps, arguments: tuple[Any, ...]) -> list[Any]:
    """Triton's interpreter combines one element after the other, each in a millisecond. What
    combines two values works on whole slices along the axis as well; it gives the same."""
    if len(arguments) > 1 or self.axis is None:
        return _reduce_by_elements(self, arguments)
    (given,) = arguments
    slices = np.moveaxis(given.handle.data, self.axis, 0)
    so_far = self.to_tensor(slices[0], given.dtype)
    for each in slices[1:]:
        so_far = self.combine_fn.fn(so_far, self.to_tensor(each, given.dtype))
    data = so_far.handle.data.reshape(slices.shape[1:])
    if self.keep_dims:
        data = np.expand_dims(data, self.axis)
    return [self.to_tensor(data if data.shape else data.item(), given.dtype)]


ReduceOps.generic_reduce = _reduce_by_slices

_NO_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
extern "C" void kernel() {}
"""
"""Indexing a tensor changes to its device, also if it has shapes alone. A build for CPUs cannot."""


@functools.cache
def _let_devices_change() -> None:
    ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"), mode=ctypes.RTLD_GLOBAL)
    CppCodeCache.load(_NO_GUARD)


def _move_to_card(graph: torch.fx.GraphModule) -> list[Any]:
    """Let the graph make its tensors on the card. Returns its arguments there, without values."""
    for node in graph.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda:0")}
    graph.recompile()
    # The sizes of these may be symbols, those of the backend's arguments are numbers.
    values = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
    return [
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
        if isinstance(x, Tensor)
        else x
        for x in values
    ]


@contextmanager
def _as_with_a_card() -> Iterator[ExitStack]:
    # Its package has the operator under the name of the module.
    hop = sys.modules["torch._higher_order_ops.flex_attention"]
    with ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "set_device", lambda device: None),
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "_exchange_device", lambda device: 0),
            (torch.cuda, "_maybe_exchange_device", lambda device: 0),
            (torch.cuda, "get_rng_state", lambda *device: torch.zeros(16, dtype=torch.uint8)),
            (torch.cuda, "set_rng_state", lambda *state: None),
            (torch.cuda, "get_device_properties", lambda *device: H200),
            (torch.cuda, "get_device_capability", lambda *device: (9, 0)),
            (CudaInterface, "is_available", staticmethod(lambda: True)),
            (CudaInterface, "get_compute_capability", staticmethod(lambda *device: 90)),
            (CudaInterface.Worker, "get_device_properties", staticmethod(lambda *device: H200)),
            (DeviceProperties, "create", classmethod(lambda cls, _: DeviceProperties(**FORMS))),
            (torch._C, "_cuda_getCurrentRawStream", lambda device: 0),
            (torch._C._dynamo.guards, "_empty_strided_cuda", _lost_unless_written),
            (AsyncCompile, "triton", _interpret),
            (triton_helpers, "set_driver_to_gpu", lambda: None),
            # A build for GPUs would make a tensor on the card before it fakes others.
            (fake_tensor, "init_gpu_context", lambda *device: None),
            (hop, "_permute_strides", _strided_like),
            # What these would look for needs a card, and is not in the graphs here.
            (joint_graph, "lazy_init", lambda *device: None),
            (post_grad, "lazy_init", lambda *device: None),
        ):
            stack.enter_context(patch.object(owner, name, value, create=owner is torch._C))
        # Constants would be made on the card to see their values.
        stack.enter_context(config.patch(joint_graph_constant_folding=False))
        stack.enter_context(config.patch(compile_threads=1, fx_graph_cache=False))
        yield stack


def interpreter(options: Mapping[str, Any]) -> Callable[..., Callable[..., Any]]:
    """A backend for torch.compile: the graph is lowered for an H200 and runs on the CPU.

    Args:
        options: inductor's settings.
    """
    triton.runtime.driver.set_active(_Driver())
    _let_devices_change()

    def compiled(graph: torch.fx.GraphModule, _inputs: list[Any]) -> Callable[..., Any]:
        written: list[str] = []

        def keep(code: str) -> None:
            written.append(code)
            raise _SourceWrittenError

        for answer in vars(torch.utils._triton).values():
            getattr(answer, "cache_clear", lambda: None)()
        mode = torch._guards.TracingContext.get().fake_mode
        assert mode is not None
        with _as_with_a_card() as stack:
            stack.enter_context(patch.object(GraphLowering, "save_output_code", keep))
            with mode:
                on_card = _move_to_card(graph)
            try:
                compile_fx(graph, on_card, config_patches=dict(options))
            except Exception:
                if not written:
                    raise

        def run(*values: Any) -> Any:
            with _as_with_a_card():
                return PyCodeCache.load(written[0]).call(list(values))

        return run

    return compiled
