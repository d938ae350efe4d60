"""The weights that training begins with: those of the published code, tensor by tensor.

Weights are normal, with the mean 0, and cut off at three deviations. The deviations below are those
of the normal distribution before it is cut, as in the published code; what is drawn deviates 0.9866
times as much. Norms are 1.

========================================================  =========================================
tensor                                                    deviation
========================================================  =========================================
token table, hash tables, output                          dim^-1/2
``patch_embedding_projection``,                           (width of what it reads)^-1/2
``token_embedding_projection``
``wq``, ``wk``, ``wv``, ``wo`` of blocks and of cross     dim^-1/2 / factor
attention, ``w1``, ``w3``
``w2``                                                    hidden_dim^-1/2 / factor
all matrices of blocks of the latent transformer or the   ``init_base_std``
entropy model, if ``init_base_std`` is given
========================================================  =========================================

``init_std_factor`` chooses the factor (:func:`model.initialisation.std_divisor`); a stack of cross
attentions counts its own layers.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from model.initialisation import InitStdFactor, std_divisor
from model.layers.attention import RotaryAngles

Initializer = Callable[[Tensor, torch.Generator | None], object]
"""Fills a parameter in place, with random numbers of the generator (None: torch's own)."""

PLAIN = ("tok_embeddings", "output", "patch_embedding_projection", "token_embedding_projection")
"""Matrices whose deviation neither the factor nor ``init_base_std`` changes."""
READING = ("wq", "wk", "wv", "w1", "w3")
"""Matrices of layers that read the states, and are as wide as they are."""
WRITING = ("wo", "w2")
"""Matrices of layers that write to the states."""


def normal(deviation: float) -> Initializer:
    """An initializer with normal weights, cut off at three deviations."""

    def fill(parameter: Tensor, generator: torch.Generator | None) -> None:
        a, b = -3 * deviation, 3 * deviation
        nn.init.trunc_normal_(parameter, std=deviation, a=a, b=b, generator=generator)

    return fill


def ones(parameter: Tensor, generator: torch.Generator | None) -> None:
    """The initializer of norms."""
    nn.init.ones_(parameter)


def initializers(
    module: nn.Module, factor: InitStdFactor, base_std: float | None
) -> dict[str, Initializer]:
    """The initializers of a transformer's parameters, by name.

    Args:
        base_std: the deviation of all matrices of blocks; None for the one that follows from their
            widths and the factor.

    Raises:
        ValueError: there is no rule for a parameter; names it.
    """
    by_name: dict[str, Initializer] = {}
    for name, parameter in module.named_parameters():
        matrix = name.split(".")[-2]
        if matrix.endswith(("norm", "norm_q", "norm_kv")):
            by_name[name] = ones
        elif matrix in PLAIN:
            by_name[name] = normal(parameter.shape[1] ** -0.5)
        elif matrix in READING + WRITING:
            by_name[name] = normal(base_std or _layer_std(module, name, parameter, factor))
        else:
            raise ValueError(f"{name}: no rule says with which deviation it begins")
    return by_name


def _layer_std(module: nn.Module, name: str, matrix: Tensor, factor: InitStdFactor) -> float:
    """The deviation of a layer's matrix, whose name has the layer's number after its stack's."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdecimal())
    stack = module.get_submodule(".".join(parts[:number]))
    dim = matrix.shape[0] if parts[-2] in WRITING else matrix.shape[1]
    # Heads of cross attention may leave a remainder of the width out; wo has the whole one's scale.
    width = matrix.shape[1] if parts[-2] == "w2" else dim
    layers = sum(1 for _ in stack.children())
    return float(width**-0.5) / std_divisor(factor, int(parts[number]), layers, dim)


def init_weights(module: nn.Module, initial: Mapping[str, Initializer]) -> None:
    """Fill a module with weights to begin training with, and with the constants that ``to_empty``
    loses.

    Args:
        initial: the initializer of each parameter, by name.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            initial[name](parameter, None)
    reset_constants(module)


def reset_constants(module: nn.Module, device: torch.device | None = None) -> None:
    """Compute again the constants that are not stored and that ``to_empty`` loses.

    Args:
        device: the one that computes, where it is not that of the weights.
    """
    for part in module.modules():
        if isinstance(part, RotaryAngles):
            part.to(device)
            part.reset_parameters()
