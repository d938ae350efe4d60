"""How kernels of our own are launched."""

import torch


def launched_early(device: torch.device) -> dict[str, bool]:
    """How a kernel is launched: from Hopper on before the one before it has ended, so that what it
    needs of no other kernel, its weights, is on its way by then. It must wait for that kernel
    before it reads or writes anything else (``gdc_wait``)."""
    early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
