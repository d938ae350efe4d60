"""Weights that were read become models: they have to fit, and are not copied."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.device import fast_dtype

M = TypeVar("M", bound=nn.Module)
Dtype = torch.dtype | Literal["stored"] | None


def fitting(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model whose state is ``expected``, of which only shapes are looked at.

    Raises:
        ValueError: weights are missing, unknown, misshaped or not floats; names them.
    """
    # A table of rotary angles, where a checkpoint has one, is recomputed, not read.
    weights = {name: w for name, w in weights.items() if not name.endswith("freqs_cis")}
    for what, names in (
        ("lacks", expected.keys() - weights),
        ("has unknown", weights.keys() - expected),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            listed = ", ".join(sorted(names)[:5])
            raise ValueError(f"the checkpoint {what} weights: {listed}{more}")
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"weight {name} has shape {tuple(weights[name].shape)}, "
                f"the configuration asks for {tuple(tensor.shape)}"
            )
        if not weights[name].is_floating_point():
            raise ValueError(f"weight {name} has dtype {weights[name].dtype}, not a float")
    return weights


class Uninitialised(TorchFunctionMode):
    """While it lasts, modules are made without initial values: the weights follow. To compute them
    on the meta device, torch would import its compiler first, which takes a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def build(make: Callable[[], M], weights: Mapping[str, Tensor]) -> M:
    """A model with exactly these weights, in their dtype, without a second copy of them.

    Raises:
        ValueError: weights are missing, unknown, misshaped or not floats; names them.
    """
    with torch.device("meta"), Uninitialised():
        model = make()
    model.load_state_dict(fitting(model.state_dict(), weights), assign=True)
    return model


def ready(model: M, device: str | torch.device | None = None, dtype: Dtype = None) -> M:
    """The model in evaluation mode, on the device and in the dtype that compute fastest.

    Args:
        device: a GPU if there is one, by default.
        dtype: see :func:`model.device.fast_dtype` for the default; ``"stored"`` leaves the weights
            as they are.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype == "stored":
        return model.to(device).eval()
    return model.to(device, dtype or fast_dtype(device)).eval()
