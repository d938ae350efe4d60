"""Makes torchtitan 0.3.0 run without an accelerator and with older releases of PyTorch.

torchtitan looks for a device when its ``tools.utils`` is imported, and assumes CUDA if there is
none. :func:`prepare` puts the CPU in its place, with the few functions that ``torch.cpu`` lacks,
and adds names that the installed PyTorch does not have yet. The GPU of a Mac is none here: ranks
cannot exchange what it holds.
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
    """The functions of ``torch.cuda`` that torchtitan calls, for the CPU; others are those of
    ``torch.cpu``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def get_device_name(self, device: object = None) -> str:
        return platform.processor() or platform.machine()

    def get_device_properties(self, device: object = None) -> SimpleNamespace:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return SimpleNamespace(total_memory=total)

    def current_device(self) -> int:
        """An index, where ``torch.cpu`` returns "cpu"."""
        return 0

    def memory_stats(self, device: object = None) -> dict[str, int]:
        """The process's peak memory (bytes), under the names of ``torch.cuda``."""
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"active_bytes.all.peak": peak, "reserved_bytes.all.peak": peak}

    def reset_peak_memory_stats(self, device: object = None) -> None:
        """Do nothing: the kernel's peak cannot be reset."""

    def empty_cache(self) -> None:
        """Do nothing: the CPU has no cache of memory."""


@functools.cache
def matrix_product_rate(device_name: str) -> float:
    """FLOPs per second of a large float32 matrix product, measured; MFU is relative to it."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    torch.mm(a, b)
    start = time.perf_counter()
    for _ in range(10):
        torch.mm(a, b)
    return 10 * 2 * 1024**3 / (time.perf_counter() - start)


def prepare() -> None:
    """Make torchtitan work with the installed PyTorch and the devices of this machine.

    Call it before torchtitan is used, and better before it is imported. ``python -m
    torchtitan.train`` imports torchtitan before the module that ``--module`` names, which works
    where PyTorch has all names. Further calls do no harm.
    """
    for module, name, substitute in (
        (torch.distributed, "set_timeout", distributed_c10d._set_pg_timeout),
        # The code that this project uses needs it for annotations only.
        (torch.distributed.fsdp, "DataParallelMeshDims", type("DataParallelMeshDims", (), {})),
    ):
        if not hasattr(module, name):
            setattr(module, name, substitute)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type == "mps":
        _use_cpu()
    logging.getLogger().addFilter(_is_worth_logging)
    for name in ("aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # torchao warns of its CUDA libraries where there is no CUDA, and torch of torchao's enums.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


SUPPRESSED_MESSAGES = (
    # A warning of torchtitan about its own default, four times.
    "initial_load_model_only=True has no effect",
    # All ranks have the same number of validation batches: see train.validator.
    "Setting validation steps to -1 might cause hangs",
)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """True for a record that torchtitan does not log in every run."""
    return not str(record.msg).startswith(SUPPRESSED_MESSAGES)


def _use_cpu() -> None:
    from torchtitan.tools import utils

    names = {"device_type": "cpu", "device_module": CpuDevice()}
    utils.device_type, utils.device_module = names.values()
    utils.get_peak_flops = matrix_product_rate
    # Modules that imported these names get the new values.
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("torchtitan."):
            for name, value in names.items():
                if hasattr(module, name):
                    setattr(module, name, value)
