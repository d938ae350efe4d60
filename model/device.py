"""The kind of device that computes, and its software: together they decide how results are rounded.

Two GPUs of one kind compute the same bits with the same software, two kinds do not.
"""

import contextlib
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ON = " on "
"""Stands before the kind of a GPU in what :func:`computing_in` returns."""
SCORING_KERNELS = "1"
"""The revision of our own kernels for scoring (:mod:`model.kernels.scoring`) and of what goes with
them, the blocks of attention's mask. To be raised with each change that rounds differently."""


def fast_dtype(device: "torch.device") -> "torch.dtype":
    """The dtype that a device computes models in fastest: bfloat16 on a GPU that has matrix units
    for it, float32 elsewhere. Most CPUs compute bfloat16 hundreds of times slower; for NVIDIA's
    GPUs before capability 8.0 (T4, V100) nothing is compiled that computes in it."""
    import torch

    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_units else torch.float32


def computing_in(device: "torch.device", dtype: "torch.dtype") -> str:
    """Device, dtype and kind of GPU: ``cpu float32``, or ``cuda bfloat16 on NVIDIA H200 (capability
    9.0, 132 multiprocessors)``.

    By capability and multiprocessors, of which a part of a GPU (MIG) has fewer, libraries choose
    their kernels.
    """
    form = f"{device.type} {str(dtype).removeprefix('torch.')}"
    if device.type != "cuda":
        return form
    import torch

    has = torch.cuda.get_device_properties(device)
    parts = f"capability {has.major}.{has.minor}, {has.multi_processor_count} multiprocessors"
    return f"{form}{ON}{has.name} ({parts})"


def has_scoring_kernels(device: "torch.device", dtype: "torch.dtype") -> bool:
    """True if a device scores with our own kernels, where they fit the model's shape: bfloat16 on
    Hopper's GPUs (capability 9.0), for which they were made and timed."""
    import torch

    if device.type != "cuda" or torch.version.hip or dtype != torch.bfloat16:
        return False  # AMD's GPUs are called cuda, and some of them have capability 9.0
    return torch.cuda.get_device_capability(device) == (9, 0)


def same_rounding(one: str | None, other: str | None) -> bool:
    """True if results of :func:`computing_in` stand for the same bits, as far as is known: None is
    not known, and early releases did not record the kind of GPU."""
    if not one or not other or one == other:
        return True
    known = ON in one and ON in other
    return not known and one.partition(ON)[0] == other.partition(ON)[0]


def software() -> dict[str, str]:
    """The versions of what makes kernels: torch, CUDA and Triton where they are installed, and our
    own, ``scoring_kernels``, where a GPU scores with them."""
    import torch

    versions = {"torch": str(torch.__version__)}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["triton"] = metadata.version("triton")
    if torch.cuda.is_available():
        device = torch.device("cuda")
        if has_scoring_kernels(device, fast_dtype(device)):
            versions["scoring_kernels"] = SCORING_KERNELS
    return versions
