"""How large weights are before training: settings of configurations, as in the published code.

:mod:`model.layers.initializers` fills the weights. None of this changes what trained weights
compute: checkpoints are compared and fingerprinted without these settings.
"""

import math
from typing import Literal, get_args

InitStdFactor = Literal["disabled", "current_depth", "global_depth", "dim_ratio"]
"""Names the divisor of the deviations of a layer's matrices; see :func:`std_divisor`."""

INITIALISATION = ("init_std_factor", "init_base_std")
"""The fields of configurations that matter before training only."""


def std_divisor(factor: InitStdFactor, layer: int, layers: int, dim: int) -> float:
    """The divisor of the deviations of one layer's matrices, as in the published code.

    For the third of 8 layers, 1,024 wide, for example: 1 (``disabled``), sqrt(2 · 3) = 2.45
    (``current_depth``), sqrt(2 · 9) = 4.24 (``global_depth``), 1,024 / 4,096 = 0.25
    (``dim_ratio``, which makes the matrices of narrow models larger).

    Args:
        layer: the layer's place in its stack, from 0.
        layers: layers of the stack.
        dim: width of the layer.
    """
    match factor:
        case "disabled":
            return 1.0
        case "current_depth":
            return math.sqrt(2 * (layer + 1))
        case "global_depth":
            return math.sqrt(2 * (layers + 1))
        case "dim_ratio":
            return dim / 4096


def check_initialisation(factor: str, base_std: float | None) -> None:
    """
    Raises:
        ValueError: a setting has no meaning; the message names it.
    """
    known = get_args(InitStdFactor)
    if factor not in known:
        raise ValueError(f"init_std_factor: {factor!r} is not one of {', '.join(known)}")
    if base_std is not None and not 0 < base_std < math.inf:
        raise ValueError(f"init_base_std: a positive deviation, or none, got {base_std}")
