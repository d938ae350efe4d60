"""Widths of layers: how the published code derives them, and what a block needs to know."""

import math
from typing import NamedTuple


class BlockShape(NamedTuple):
    """The shape of one transformer block."""

    dim: int
    n_heads: int
    n_kv_heads: int
    """Key and value heads."""
    hidden_dim: int
    """Width of the feed-forward layer."""
    norm_eps: float


def default_hidden_dim(dim: int, multiplier: float | None = None, multiple_of: int = 256) -> int:
    """Width of the SwiGLU layer: 8/3 of ``dim``, times the multiplier, rounded up."""
    hidden = int(2 * 4 * dim / 3)
    if multiplier is not None:
        hidden = int(hidden * multiplier)
    return -(-hidden // multiple_of) * multiple_of


def hidden_dim_arguments(widths: set[tuple[int, int]]) -> tuple[float | None, int]:
    """Arguments with which :func:`default_hidden_dim` gives these widths, if there are any.

    A width is a multiple of ``multiple_of``, so the greatest common divisor is the weakest claim. A
    width w is what values in ``(w - multiple_of, w]`` are rounded up to, which bounds the
    multiplier on both sides; the middle of what all widths allow is taken.

    Args:
        widths: pairs of ``dim`` and hidden width.

    Returns:
        multiplier and ``multiple_of``. If these do not give all widths, no others do.
    """
    if all(hidden == default_hidden_dim(dim) for dim, hidden in widths):
        return None, 256
    multiple_of = math.gcd(*(hidden for _, hidden in widths))
    low = max((hidden - multiple_of + 1) / int(2 * 4 * dim / 3) for dim, hidden in widths)
    high = min((hidden + 1) / int(2 * 4 * dim / 3) for dim, hidden in widths)
    return (low + high) / 2, multiple_of
