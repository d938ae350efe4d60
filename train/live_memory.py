"""The memory of a training step's activations, counted on the meta device.

The model's own forward and backward pass run without values, and every tensor that is made is
followed until nobody holds it. So the count has what the layers keep for backward, what activation
checkpointing drops and computes again, and what is there for a moment only. It knows neither the
allocator's fragments nor what a compiler fuses away.
"""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchtitan.distributed.activation_checkpoint import ActivationCheckpointing

from model import BLT
from train.checkpoints.kinds import Shape, build_model
from train.parallelize import checkpoint_activations

EVERY = 8
"""Operations between two looks at what is still held."""


class LiveMemory(TorchDispatchMode):
    """Follows the tensors that are made inside; works on the meta device, where they cost
    nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        """Most bytes that were held at once."""
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._operations += 1
        if self._operations % EVERY == 0:
            self.look()
        return out

    def look(self) -> int:
        """Bytes that are held now."""
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        held = sum(size for _, size in self._held.values())
        self.peak = max(self.peak, held)
        return held


def activation_bytes(
    shape: Shape,
    *,
    rows: int,
    seq_len: int,
    patches: int,
    checkpointing: ActivationCheckpointing.Config | None,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Most bytes that a step of one rank holds beside weights, their gradients and the optimizer's
    state.

    Args:
        rows: rows of a microbatch of one rank.
        seq_len: tokens per row.
        patches: patches per row.
        checkpointing: activation checkpointing of the blocks.
        dtype: of what the model computes.
    """
    with torch.device("meta"):
        model = build_model(shape)
        inputs = [torch.empty(rows, seq_len, dtype=torch.int64)]
        if isinstance(model, BLT):
            inputs.append(torch.empty(rows, patches, dtype=torch.int64))
    # Also the constants, which are made on the CPU.
    model = model.to("meta", dtype)
    if isinstance(model, BLT):
        # Tables are looked up elsewhere, and their gradients are of a few rows: see train.plan.
        model.encoder_hash_tok_embedding.requires_grad_(False)
    if checkpointing is not None:
        checkpoint_activations(model, checkpointing, dump_folder="")
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(_forget_gradient)
    with LiveMemory() as memory:
        logits = model(*inputs)
        labels = torch.empty(logits.shape[:-1], dtype=torch.int64, device="meta")
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        memory.look()
    return memory.peak


def _forget_gradient(weight: Tensor) -> None:
    """FSDP scatters a gradient as soon as it is there; its shard is counted elsewhere."""
    weight.grad = None
