"""The convolutional entropy model as it is trained: real weights that are rounded in each step.

The forward pass rounds weights and activations to the whole numbers that
:class:`model.conv_entropy_model.ConvEntropyModel` computes with, so that it gives that model's
entropies to the bit; the backward pass takes the rounding for the identity (Bengio et al., 2013:
straight-through estimator).
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.conv_entropy_model import (
    ACTIVATION,
    LARGEST,
    LARGEST_BIAS,
    WEIGHT,
    ConvEntropyConfig,
    ConvEntropyModel,
    gather_taps,
)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: int, lowest: int, largest: int) -> Tensor:
        scaled = x * scale
        ctx.save_for_backward((scaled >= lowest) & (scaled <= largest))
        return scaled.clamp_(lowest, largest).round_().div_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient * ctx.saved_tensors[0], None, None, None


def rounded(x: Tensor, scale: int, largest: int = LARGEST, lowest: int | None = None) -> Tensor:
    """The nearest multiples of ``1 / scale``, from ``lowest`` (``-largest`` by default) to
    ``largest`` of them."""
    result: Tensor = _Rounded.apply(x, scale, -largest if lowest is None else lowest, largest)
    return result


def activation(x: Tensor) -> Tensor:
    """A clipped ReLU, rounded."""
    return rounded(x, ACTIVATION, lowest=0)


class Student(nn.Module):
    """A convolutional entropy model that learns."""

    def __init__(self, config: ConvEntropyConfig):
        super().__init__()
        self.config = config
        dim = config.dim
        self.embeddings = nn.Parameter(torch.randn(config.embeddings, dim) * 0.05)
        self.embeddings_bias = nn.Parameter(torch.full((dim,), 0.3))
        self.layers = nn.ModuleList(nn.Linear(dim * len(taps), dim) for taps in config.taps)
        for layer in self._linears():
            nn.init.normal_(layer.weight, 0, 1.1 / math.sqrt(layer.in_features))
            nn.init.constant_(layer.bias, 0.2)
        self.output = nn.Linear(dim * (len(config.taps) + 1), 1)
        nn.init.normal_(self.output.weight, 0, 0.02)
        nn.init.constant_(self.output.bias, 1.0)

    def _linears(self) -> list[nn.Linear]:
        return cast(list[nn.Linear], list(self.layers))

    def forward(self, rows_TK: Tensor, position_T: Tensor) -> Tensor:
        """The entropy (nats) after each token of segments laid end to end.

        Args:
            rows_TK: rows of the embeddings, see :func:`model.conv_entropy_model.embedding_rows`.
            position_T: the position of each token in its segment.
        """
        x_TD = F.embedding_bag(rows_TK, rounded(self.embeddings, ACTIVATION), mode="sum")
        x_TD = activation(x_TD + rounded(self.embeddings_bias, ACTIVATION))
        seen = [x_TD]
        for taps, layer in zip(self.config.taps, self._linears(), strict=True):
            x_TD = activation(_linear(layer, gather_taps(x_TD, position_T, taps)))
            seen.append(x_TD)
        return _linear(self.output, torch.cat(seen, -1))[:, 0]

    def model(self) -> ConvEntropyModel:
        """The model in whole numbers."""
        with torch.no_grad():
            weights = {
                "embeddings": rounded(self.embeddings, ACTIVATION) * ACTIVATION,
                "embeddings_bias": rounded(self.embeddings_bias, ACTIVATION) * ACTIVATION,
            }
            named = {f"layer_{number}": layer for number, layer in enumerate(self._linears())}
            for name, layer in (named | {"output": self.output}).items():
                weights[name] = rounded(layer.weight, WEIGHT) * WEIGHT
                weights[f"{name}_bias"] = _bias(layer) * (ACTIVATION * WEIGHT)
        shapes = self.config.shapes
        whole = {name: values.to(shapes[name][1]) for name, values in weights.items()}
        return ConvEntropyModel(self.config, whole)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, rounded(layer.weight, WEIGHT), _bias(layer))


def _bias(layer: nn.Linear) -> Tensor:
    return rounded(layer.bias, ACTIVATION * WEIGHT, LARGEST_BIAS)
