"""Kernels of our own on a CPU: Triton's interpreter runs them where a GPU would, in this process."""

import sys
from types import ModuleType

import pytest

pytest.importorskip("triton", reason="kernels are written in Triton")

import triton.experimental.gluon  # which Triton would load too late, when its functions are interpreted
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from model import kernels
from model.kernels import few_rows, ring_attention

KERNELS = (few_rows, ring_attention)


def interpret(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Interpret the kernels of modules, and what Triton's own library has of functions."""
    library = [module for name, module in sys.modules.items() if name.startswith(tl.__name__)]
    for module in (*library, *modules):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, InterpretedFunction(value.fn))


def run_kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU be a device for kernels."""
    interpret(monkeypatch, *KERNELS)
    # Few programs, because each takes the interpreter milliseconds.
    monkeypatch.setattr(few_rows, "ROWS", 32)
    monkeypatch.setattr(few_rows, "COLUMNS", 64)
    monkeypatch.setattr(kernels, "usable", lambda device: True)
