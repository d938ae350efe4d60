"""Kernels of our own for GPUs, in Triton, each beside the plain PyTorch that it equals."""

import functools
import importlib.util

import torch

FEW_TOKENS = 4
"""Tokens up to which a product is one of few: each has sums of its own in registers."""


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def usable(device: torch.device) -> bool:
    """True where the kernels run: on a GPU, if there is Triton. The meta device stands for one."""
    return device.type in ("cuda", "meta") and _has_triton()


def few(x_TD: torch.Tensor) -> bool:
    """True if there are kernels for products of so few tokens: :mod:`model.kernels.few_rows`."""
    return len(x_TD) <= FEW_TOKENS and usable(x_TD.device)


def launched_early(device: torch.device) -> dict[str, bool]:
    """How a kernel is launched: from Hopper on before the one before it has ended, so that what it
    needs of no other kernel, its weights, is on its way by then. It must wait for that kernel
    before it reads or writes anything else (``gdc_wait``)."""
    early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
