"""The transformer block that the entropy model and all three parts of BLT are made of.

Pre-norm, no biases, rotary positions, grouped keys and values, SwiGLU; the arithmetic is that of
the published weights. Blocks read tokens laid end to end; who may see whom is decided by the
``attend`` function that they are given (:mod:`model.layers.attention`).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.attention import Attend, RotaryAngles, apply_rotary


def default_hidden_dim(dim: int, multiplier: float | None = None, multiple_of: int = 256) -> int:
    """Width of the SwiGLU layer: 8/3 of ``dim``, times the multiplier, rounded up."""
    hidden = int(2 * 4 * dim / 3)
    if multiplier is not None:
        hidden = int(hidden * multiplier)
    return -(-hidden // multiple_of) * multiple_of


def hidden_dim_arguments(widths: set[tuple[int, int]]) -> tuple[float | None, int]:
    """Arguments with which :func:`default_hidden_dim` gives these widths, if there are any.

    Args:
        widths: pairs of ``dim`` and hidden width.

    Returns:
        multiplier and ``multiple_of``. No others give all widths where these do not.
    """
    if all(hidden == default_hidden_dim(dim) for dim, hidden in widths):
        return None, 256
    multiple_of = math.gcd(*(hidden for _, hidden in widths))
    # What is rounded up to `hidden` lies within one multiple below it.
    low = max((hidden - multiple_of + 1) / int(2 * 4 * dim / 3) for dim, hidden in widths)
    high = min((hidden + 1) / int(2 * 4 * dim / 3) for dim, hidden in widths)
    return (low + high) / 2, multiple_of


class SelfAttention(nn.Module):
    """Attention among the tokens of one sequence, rotary positions."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int):
        super().__init__()
        self.head_dim = dim // n_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x_TD: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        q, k, v = (w(x_TD).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        out_THD = attend(apply_rotary(q, rotary), apply_rotary(k, rotary), v)
        return self.wo(out_THD.flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x_TD)) * self.w3(x_TD))


class Block(nn.Module):
    """One layer: attention, then the feed-forward part, each added to what it reads."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, hidden_dim: int, norm_eps: float):
        super().__init__()
        self.attention = SelfAttention(dim, n_heads, n_kv_heads)
        self.feed_forward = FeedForward(dim, hidden_dim)
        self.attention_norm = nn.RMSNorm(dim, eps=norm_eps)
        self.ffn_norm = nn.RMSNorm(dim, eps=norm_eps)

    def forward(self, x_TD: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """
        Args:
            rotary: cos and sin of each token's angles, ``[tokens, head_dim / 2, 2]``.
            attend: the attention of this layer.
        """
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), rotary, attend)
        return x_TD + self.feed_forward(self.ffn_norm(x_TD))


def run_blocks(
    layers: nn.ModuleList, x_TD: Tensor, rotary: Tensor, attends: Sequence[Attend]
) -> Tensor:
    """All layers after one another, each with its own attention."""
    for layer, attend in zip(layers, attends, strict=True):
        x_TD = layer(x_TD, rotary, attend)
    return x_TD


Initializer = Callable[[Tensor, torch.Generator | None], object]
"""Fills a parameter in place, with random numbers of the generator (None: torch's own)."""


def normal(deviation: float) -> Initializer:
    """Normal weights, cut off at three deviations."""

    def fill(parameter: Tensor, generator: torch.Generator | None) -> None:
        a, b = -3 * deviation, 3 * deviation
        nn.init.trunc_normal_(parameter, std=deviation, a=a, b=b, generator=generator)

    return fill


def ones(parameter: Tensor, generator: torch.Generator | None) -> None:
    """What norms begin with."""
    nn.init.ones_(parameter)


def initializers(module: nn.Module, depth: int) -> dict[str, Initializer]:
    """What the parameters of a transformer begin with, by name: normal weights of deviation
    ``1 / sqrt(inputs)``, those that write to the residual stream (``wo``, ``w2``) smaller by
    ``sqrt(2 * depth)``; norms are 1."""
    found: dict[str, Initializer] = {}
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            found[name] = ones
            continue
        smaller = (2 * depth) ** 0.5 if name.endswith(("wo.weight", "w2.weight")) else 1
        found[name] = normal(parameter.shape[-1] ** -0.5 / smaller)
    return found


def init_weights(module: nn.Module, initial: Mapping[str, Initializer]) -> None:
    """Weights to begin training with, and the constants that ``to_empty`` loses."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            initial[name](parameter, None)
    reset_constants(module)


def reset_constants(module: nn.Module) -> None:
    """Compute what is neither trained nor stored again: after ``to_empty`` it is lost."""
    for part in module.modules():
        if isinstance(part, RotaryAngles):
            part.reset_parameters()
