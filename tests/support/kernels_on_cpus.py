"""Triton kernels of our own, run by Triton's interpreter in the process that asks.

What :mod:`support.interpreted` does for kernels that inductor generates needs a new process. These
are written down, and each can be handed to the interpreter alone. Where it would take too long,
plain PyTorch that equals them stands for them.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from model.layers.attention import apply_rotary


def interpret(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Let the kernels of these modules be interpreted, on tensors on the CPU, until the patch is
    undone. Give them float32: the interpreter is wrong about bfloat16 that a kernel computes with
    before it casts it."""
    import triton
    import triton.language
    from triton.runtime.interpreter import InterpretedFunction

    # The interpreter puts its own operations in here, and leaves some behind.
    for name, value in list(vars(triton.language.core).items()):
        monkeypatch.setattr(triton.language.core, name, value)
    for module in (*modules, triton.language):
        for name, function in list(vars(module).items()):
            if isinstance(function, triton.JITFunction):
                monkeypatch.setattr(module, name, InterpretedFunction(function.fn))


def run_kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU be a device for the kernels with which a GPU generates."""
    from model import kernels
    from model.kernels import few_rows, ring_attention

    interpret(monkeypatch, few_rows, ring_attention)
    # Few programs, because each takes the interpreter milliseconds.
    monkeypatch.setattr(few_rows, "ROWS", 128)
    monkeypatch.setattr(few_rows, "COLUMNS", 64)
    monkeypatch.setattr(kernels, "usable", lambda device, dtype: True)


def stand_for_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU take the ways of a GPU with the kernels, in plain PyTorch, which takes microseconds
    where the interpreter takes milliseconds."""
    monkeypatch.setattr("model.kernels.usable", lambda device, dtype: True)
    monkeypatch.setattr("model.kernels.few", lambda x_TD, weight_ED: False)
    monkeypatch.setattr("model.kernels.ring_attention.attend_to_ring", attend_to_ring_plainly)


def attend_to_ring_plainly(
    qkv_BE: Tensor,
    rotary_BF2: Tensor,
    ring: Tensor,
    position_B: Tensor,
    reach_B: Tensor,
    needed_B: Tensor | None,
    window: int,
) -> Tensor:
    """See :func:`model.kernels.ring_attention.attend_to_ring`."""
    batch, slots, kept, head_dim = ring.shape
    qkv_BHE, shared = qkv_BE.view(batch, -1, head_dim), kept // 2
    qk_BHE = apply_rotary(qkv_BHE[:, :-shared], rotary_BF2)
    q_BHE, k_BHE = qk_BHE[:, :-shared], qk_BHE[:, -shared:]
    ring[torch.arange(batch), position_B % slots] = torch.cat([k_BHE, qkv_BHE[:, -shared:]], 1)
    behind_BR = (position_B[:, None] - torch.arange(slots)) % slots
    most_B = reach_B.clamp(max=window - 1)
    if needed_B is not None:
        most_B = torch.where(needed_B > 0, most_B, 0)
    seen_BR = behind_BR <= most_B[:, None]
    kv_BRHE = ring.repeat_interleave(q_BHE.shape[1] // shared, 2)
    k_BRHE, v_BRHE = kv_BRHE.where(seen_BR[:, :, None, None], 0).chunk(2, 2)
    score_BRH = (q_BHE[:, None] * k_BRHE).sum(-1) * head_dim**-0.5
    p_BRH = score_BRH.masked_fill(~seen_BR[:, :, None], -torch.inf).softmax(1)
    return (p_BRH[..., None] * v_BRHE).sum(1).flatten(1)
