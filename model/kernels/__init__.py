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
