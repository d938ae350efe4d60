"""Kernels of our own for GPUs, in Triton, each beside the plain PyTorch that it equals."""

import functools
import importlib.util
import warnings

import torch

FEW_TOKENS = 4
"""Tokens up to which a product is one of few: each has sums of its own in registers."""


@functools.cache
def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """True where the kernels run: on NVIDIA's GPUs for which Triton compiles them. The meta device
    stands for one. They add up in float32, which is too coarse for float64."""
    if device.type not in ("cuda", "meta") or dtype == torch.float64:
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    # AMD's GPUs are called cuda, too.
    return device.type == "meta" or (not torch.version.hip and _runs(device, dtype))


def _runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Try a kernel: Triton needs a C compiler, and a GPU that is not too old."""
    try:
        from model.kernels.few_rows import added_product

        weight_DD = torch.zeros(16, 16, dtype=dtype, device=device)
        x_TD, y_TD = weight_DD.new_zeros(2, 1, 16)
        added_product(x_TD, y_TD, weight_DD, 1.0)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        warnings.warn(
            f"generation is slower than it could be: its kernels cannot be compiled for {device} "
            f"({error})",
            stacklevel=2,
        )
        return False
    return True


def few(x_TD: torch.Tensor, weight_ED: torch.Tensor) -> bool:
    """True if there are kernels for a product of so few tokens: :mod:`model.kernels.few_rows`."""
    few_tokens = len(x_TD) <= FEW_TOKENS and weight_ED.is_contiguous()
    return few_tokens and usable(x_TD.device, x_TD.dtype)
