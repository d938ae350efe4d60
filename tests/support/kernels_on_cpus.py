"""Triton kernels of our own, run by Triton's interpreter in the process that asks.

What :mod:`support.interpreted` does for kernels that inductor generates needs a new process. These
are written down, and each can be handed to the interpreter alone.
"""

from types import ModuleType

import pytest


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
