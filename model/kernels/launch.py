"""How kernels of our own are launched."""

import torch

EARLY_SINCE, EARLY_UNTIL = (9, 0), (12, 0)
"""Capabilities of the GPUs that launch kernels early: those of data centers from Hopper on. Of the
others it is not known that graphs take such launches: there are reports that an RTX 5090 refuses
them."""


def launched_early(device: torch.device) -> dict[str, bool]:
    """How a kernel is launched: where a GPU can, before the one before it has ended, so that what
    it needs of no other kernel, its weights, is on its way by then. It must wait for that kernel
    before it reads or writes anything else (``gdc_wait``)."""
    early = device.type == "cuda" and (
        EARLY_SINCE <= torch.cuda.get_device_capability(device) < EARLY_UNTIL
    )
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
