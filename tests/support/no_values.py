"""The paths that only a GPU takes, on the meta device: shapes, dtypes and devices without values.

An operation whose result needs values (``item``, ``tolist``, shapes that depend on the data) fails
there, as it would make a GPU wait.
"""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention

from model.layers import attention

META = torch.device("meta")


@contextmanager
def gpu_paths():
    """FlexAttention runs on the meta device, and not compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "shapes_only", attention.fused_attention)
        patch.setattr(attention, "_compiled_flex", lambda: attention.attend_flex)
        patch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
        yield


def without_values(model: nn.Module) -> nn.Module:
    """A model on the meta device in bfloat16, also the constants that are made on the CPU."""
    return model.bfloat16().to(META)


def multiply_scaled(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """The product that float8 is about, as torchao lays its operands out: the first in rows, the
    second in columns."""
    a, b = a_MK.contiguous(), b_KN.t().contiguous().t()
    one = torch.ones((), device=a.device)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    return torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16)


class _Scaled(torch.autograd.Function):
    """``x @ weight.t()`` and the two products of its backward pass, all in float8."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply_scaled(x, weight.t())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return multiply_scaled(grad, weight), multiply_scaled(grad.t(), x)


class ScaledLinear(nn.Linear):
    """A linear layer whose three products are those of torchao's Float8Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return _Scaled.apply(x, self.weight)
