"""Operators, kernels and bytes of the parts around the blocks in a training step; needs no GPU.

The shapes are those of blt_1b, with a row of 4,096 bytes in 910 patches, in bfloat16. Operators are
what PyTorch dispatches forward and backward on the meta device, where each would be a kernel of a
GPU; kernels are what inductor makes of the same part (for a CPU; it fuses alike for a GPU), calls
of libraries included. Bytes are those of the tensors that each of them reads and writes. Target: a
decoder's read moves a third of the bytes that it moved as einsums, uncompiled.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from common import verdict  # isort: skip

import torch
import torch._inductor.compile_fx
from torch import Tensor, nn
from torch._inductor import metrics
from torch._inductor.utils import fresh_cache
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import BLT, BLT_SIZES
from model.layers.patch_layout import PatchLayout

BYTES, PATCHES = 4096, 910
BEFORE = 407.0
"""kB per byte of text of a decoder's read as einsums over vectors that were looked up."""
TARGET = 1 / 3


class Traffic(TorchDispatchMode):
    """Counts operators that make or change values, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if tensors and not func.is_view:
            self.operators += 1
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def backward(out: Any) -> None:
    """The backward pass of a part, if it has one."""
    if isinstance(out, Tensor) and out.requires_grad:
        out.backward(torch.empty_like(out))


def eager(part: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Operators and bytes of a part of a model on the meta device."""
    with Traffic() as traffic:
        backward(part(*inputs))
    return traffic.operators, traffic.bytes


def compiled(part: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Kernels and bytes of a part, compiled."""
    torch._dynamo.reset()
    metrics.reset()
    # inductor counts where the counts would be logged.
    log = torch._inductor.compile_fx.inductor_metrics_log
    log.setLevel(logging.INFO)
    log.propagate = False
    with fresh_cache():
        backward(torch.compile(part, fullgraph=True, dynamic=False)(*inputs))
    return len(metrics.nodes_num_elem), metrics.num_bytes_accessed


def parts(model: BLT, device: str) -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    """What lies around the blocks, with inputs."""
    config = model.config
    encoder, decoder = model.local_encoder, model.local_decoder

    def states(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)

    tokens = torch.full((1, BYTES), 4, device=device)
    lengths = torch.ones(1, PATCHES, dtype=torch.int64, device=device)
    lengths[:, -1] += BYTES - PATCHES
    byte = torch.arange(BYTES, device=device)
    patch_TW = (byte * PATCHES // BYTES)[:, None]
    x_TD, x_NKD = states(BYTES, config.dim_local), states(PATCHES, 2, config.dim_local)

    def layout(tokens: Tensor, lengths: Tensor) -> PatchLayout:
        return PatchLayout.of(tokens, lengths, 1, 1, multiple=128)

    def patches(x_TD: Tensor, patch_TW: Tensor) -> Tensor:
        return encoder.patches([x_TD], patch_TW, PATCHES)

    return {
        "layout": (layout, [tokens, lengths]),
        "ids of hashed n-grams": (model.encoder_hash_tok_embedding.row_ids, [tokens[0], byte]),
        "patches of the encoder": (patches, [x_TD, patch_TW]),
        "a read of the decoder": (decoder.cross_attn_layers[0], [x_TD, x_NKD, patch_TW]),
        "head": (decoder.logits, [x_TD]),
    }


def without_blocks() -> BLT:
    """blt_1b without its transformer blocks, on the meta device."""
    with torch.device("meta"):
        model = BLT(BLT_SIZES["1b"])
    for stack in (model.local_encoder, model.global_transformer, model.local_decoder):
        stack.layers = nn.ModuleList()
    return model.bfloat16()


def main() -> None:
    model = without_blocks()
    on_meta = {name: eager(*part) for name, part in parts(model, "meta").items()}
    for part in (model.local_encoder, model.local_decoder):
        part.to_empty(device="cpu")
        nn.Module.apply(part, lambda m: [nn.init.ones_(p) for p in m.parameters(recurse=False)])
    now = {name: compiled(*part) for name, part in parts(model, "cpu").items()}
    for name, (operators, moved) in on_meta.items():
        kernels, less = now[name]
        print(
            f"{name}: {operators} operators, {moved / BYTES / 1e3:.0f} kB per byte of text; "
            f"compiled {kernels} kernels, {less / BYTES / 1e3:.0f} kB"
        )
    share = now["a read of the decoder"][1] / BYTES / 1e3 / BEFORE
    print(f"result: a read moves {share:.2f} of the bytes, {verdict(share <= TARGET)}")


if __name__ == "__main__":
    main()
