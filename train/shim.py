"""What torchtitan 0.3.0 takes for granted and may not find: an accelerator, and newer PyTorch.

torchtitan looks for a device when its ``tools.utils`` is imported, and takes a missing one for
CUDA. Here the CPU is put in its place, with the few functions that ``torch.cpu`` lacks. Names that
come with later releases of PyTorch than the installed one are filled in where they are missing.
"""

import functools
import logging
import os
import platform
import resource
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.fsdp
from torch.distributed import distributed_c10d


class CpuDevice:
    """What torchtitan asks of ``torch.cuda``, answered for the CPU; the rest is ``torch.cpu``'s."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def get_device_name(self, device: object = None) -> str:
        return platform.processor() or platform.machine()

    def get_device_properties(self, device: object = None) -> SimpleNamespace:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return SimpleNamespace(total_memory=total)

    def current_device(self) -> int:
        """torch.cpu says "cpu", where an index is asked for."""
        return 0

    def memory_stats(self, device: object = None) -> dict[str, int]:
        """The process's highest memory so far (bytes), under torch.cuda's names."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"active_bytes.all.peak": peak, "reserved_bytes.all.peak": peak}

    def reset_peak_memory_stats(self, device: object = None) -> None:
        """The kernel keeps the peak: there is nothing to reset."""

    def empty_cache(self) -> None:
        """There is no cache."""


@functools.cache
def matrix_product_rate(device_name: str) -> float:
    """FLOPs per second of a large float32 matrix product, measured: what MFU is relative to."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    torch.mm(a, b)
    start = time.perf_counter()
    for _ in range(10):
        torch.mm(a, b)
    return 10 * 2 * 1024**3 / (time.perf_counter() - start)


def prepare() -> None:
    """Make torchtitan work with the PyTorch and the devices that there are.

    To be called before torchtitan is imported, or after (``python -m torchtitan.train`` imports all
    of it before the module that ``--module`` names) but before it is used.
    """
    for module, name, instead in (
        (torch.distributed, "set_timeout", distributed_c10d._set_pg_timeout),
        # Only named in annotations, as far as it is used here.
        (torch.distributed.fsdp, "DataParallelMeshDims", type("DataParallelMeshDims", (), {})),
    ):
        if not hasattr(module, name):
            setattr(module, name, instead)
    if not torch.accelerator.is_available():
        _use_cpu()
    logging.getLogger().addFilter(_tells_something)
    for name in ("aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)


NO_NEWS = (
    # Of one of torchtitan's own defaults, four times.
    "initial_load_model_only=True has no effect",
    # Ranks have as many validation batches as one another: train.validator.
    "Setting validation steps to -1 might cause hangs",
)


def _tells_something(record: logging.LogRecord) -> bool:
    """Leaves out what torchtitan says of every run."""
    return not str(record.msg).startswith(NO_NEWS)


def _use_cpu() -> None:
    from torchtitan.tools import utils

    names = {"device_type": "cpu", "device_module": CpuDevice()}
    utils.device_type, utils.device_module = names.values()
    utils.get_peak_flops = matrix_product_rate
    # Modules that took the device by name get it anew.
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("torchtitan."):
            for name, value in names.items():
                if hasattr(module, name):
                    setattr(module, name, value)
