"""The transformer block that the entropy model and all three parts of BLT are made of.

It has pre-norm, rotary positions, grouped keys and values, SwiGLU, and no biases; the arithmetic is
that of the published weights. Blocks read tokens laid end to end. The ``attend`` function that they
are given decides which tokens see each other (:mod:`model.layers.attention`).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.attention import Attend, apply_rotary


class SelfAttention(nn.Module):
    """Attention among tokens, with rotary positions."""

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
        out_TD: Tensor = self.wo(out_THD.flatten(-2))
        return out_TD


class FeedForward(nn.Module):
    """The feed-forward part, SwiGLU: ``w2(silu(w1(x)) * w3(x))``."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        out_TD: Tensor = self.w2(F.silu(self.w1(x_TD)) * self.w3(x_TD))
        return out_TD


class Block(nn.Module):
    """One layer: attention, then the feed-forward part, each added to its input."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, hidden_dim: int, norm_eps: float):
        super().__init__()
        self.attention = SelfAttention(dim, n_heads, n_kv_heads)
        self.feed_forward = FeedForward(dim, hidden_dim)
        self.attention_norm = nn.RMSNorm(dim, eps=norm_eps)
        self.ffn_norm = nn.RMSNorm(dim, eps=norm_eps)

    def forward(self, x_TD: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """States after the layer, ``[tokens, dim]``.

        Args:
            x_TD: states before it.
            rotary: cos and sin of each token's angles, ``[tokens, head_dim / 2, 2]``.
            attend: the attention of this layer.
        """
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), rotary, attend)
        fed_TD: Tensor = self.feed_forward(self.ffn_norm(x_TD))
        return x_TD + fed_TD


def run_blocks(
    layers: nn.ModuleList, x_TD: Tensor, rotary: Tensor, attends: Sequence[Attend]
) -> Tensor:
    """States after all layers, each with its own attention."""
    for layer, attend in zip(layers, attends, strict=True):
        x_TD = layer(x_TD, rotary, attend)
    return x_TD
