"""The transformer block that the entropy model and all three parts of BLT are made of.

It has pre-norm, rotary positions, grouped keys and values, SwiGLU, and no biases; the arithmetic is
that of the published weights. Blocks read tokens laid end to end. The ``attend`` function that they
are given decides which tokens see each other (:mod:`model.layers.attention`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels import scoring
from model.layers.attention import Attend, RotaryAngles, apply_rotary
from model.layers.initializers import Initializer, init_weights, initializers
from model.widths import StackShape


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
        out_TD: Tensor = self.wo(self.mix(x_TD, rotary, rotary, attend))
        return out_TD

    def mix(self, x_TD: Tensor, rotary_q: Tensor, rotary_k: Tensor, attend: Attend) -> Tensor:
        """Values mixed among tokens, ``[tokens, dim]``, before the last projection."""
        q, k, v = (w(x_TD).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        return attend(apply_rotary(q, rotary_q), apply_rotary(k, rotary_k), v).flatten(-2)


class FeedForward(nn.Module):
    """The feed-forward part, SwiGLU: ``w2(silu(w1(x)) * w3(x))``."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        out_TD: Tensor = self.w2(self.gate(x_TD))
        return out_TD

    def gate(self, x_TD: Tensor) -> Tensor:
        """Gated features, ``[tokens, hidden_dim]``, before the last projection."""
        gated_TF: Tensor = F.silu(self.w1(x_TD)) * self.w3(x_TD)
        return gated_TF


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


class Stack(nn.Module):
    """A model of one stack of blocks between an embedding and an output layer, as far as all such
    models are alike: :class:`model.entropy_model.EntropyModel` and
    :class:`model.token_transformer.TokenTransformer`."""

    def __init__(self, shape: StackShape):
        super().__init__()
        self._initialisation = shape.init_std_factor, shape.init_base_std
        self.tok_embeddings = nn.Embedding(shape.vocab_size, shape.dim)
        self.layers = nn.ModuleList(Block(*shape.block_shape) for _ in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.dim, eps=shape.norm_eps)
        self.output = nn.Linear(shape.dim, shape.vocab_size, bias=False)
        self.rotary = RotaryAngles(shape.head_dim, shape.rope_theta)

    def init_weights(self) -> None:
        """Fill the model with weights to begin training with."""
        init_weights(self, self.initializers())

    def initializers(self) -> dict[str, Initializer]:
        """The initializer of each parameter, by name."""
        return initializers(self, *self._initialisation)


def run_blocks(
    layers: nn.ModuleList, x_TD: Tensor, rotary: Tensor, attends: Sequence[Attend]
) -> Tensor:
    """States after all layers, each with its own attention."""
    for layer, attend in zip(layers, attends, strict=True):
        x_TD = layer(x_TD, rotary, attend)
    return x_TD


def run_blocks_in_place(
    layers: nn.ModuleList, x_TD: Tensor, rotary: Tensor, attend: Attend, *, fused: bool = False
) -> None:
    """Turn ``x_TD`` into the states after all layers; for a GPU where nothing goes backward.

    It is :func:`run_blocks` with two differences. A matrix product itself adds its result to the
    states, as cuBLAS can; otherwise inductor adds it in the norms that follow, which then read up
    to four products instead of one tensor. And queries are scaled while they are turned, before
    they are rounded; otherwise attention scales each score, of which there are 500 per query. Where
    ``fused``, operators of our own compute what lies between a norm and attention, and the gate.

    Args:
        rotary: cos and sin of each token's angles, ``[tokens, head_dim / 2, 2]``; if ``fused``, a
            row of cosines and one of sines per token, ``[tokens, 2, head_dim / 2]``.
        attend: attention that does not scale scores.
        fused: compute with :mod:`model.kernels.scoring`, which must fit the card and the shape.
    """
    mix, gate = (_mix_fused, _gate_fused) if fused else (_mix_scaled, FeedForward.gate)
    for layer in layers:
        assert isinstance(layer, Block)
        attention, fed = layer.attention, layer.feed_forward
        mixed_TD = mix(attention, layer.attention_norm(x_TD), rotary, attend)
        add_product(x_TD, mixed_TD, attention.wo.weight)
        add_product(x_TD, gate(fed, layer.ffn_norm(x_TD)), fed.w2.weight)


def _mix_scaled(
    attention: SelfAttention, x_TD: Tensor, rotary_TF2: Tensor, attend: Attend
) -> Tensor:
    return attention.mix(x_TD, rotary_TF2 * attention.head_dim**-0.5, rotary_TF2, attend)


def _mix_fused(
    attention: SelfAttention, x_TD: Tensor, rotary_T2F: Tensor, attend: Attend
) -> Tensor:
    weights = attention.wq.weight, attention.wk.weight, attention.wv.weight
    scale = attention.head_dim**-0.5
    return attend(*scoring.project_heads(x_TD, *weights, rotary_T2F, scale)).flatten(-2)


def _gate_fused(fed: FeedForward, x_TD: Tensor) -> Tensor:
    gated_TF: Tensor = scoring.gate(x_TD, fed.w1.weight, fed.w3.weight)
    return gated_TF


@torch.library.custom_op("blt_titan::add_product", mutates_args={"x_TD"})
def add_product(x_TD: Tensor, a_TK: Tensor, weight_DK: Tensor) -> None:
    """Add ``a @ weight.T`` to ``x`` in place. An operator of its own, because inductor would take a
    plain ``addmm_`` apart again."""
    x_TD.addmm_(a_TK, weight_DK.t())


@add_product.register_fake
def _(x_TD: Tensor, a_TK: Tensor, weight_DK: Tensor) -> None:
    return None


READ_DIRECTLY = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "tok_embeddings")
"""Names of layers whose weights generation, and scoring on a GPU, read themselves."""


def check_plain_layers(model: nn.Module, *others: str) -> None:
    """Check that the layers whose weights are read past them compute nothing else.

    Adapters such as LoRA put layers of their own in their places; a text written, or entropies
    scored, with the weights alone would be that of the model without them.

    Args:
        others: names of more such layers than :data:`READ_DIRECTLY`.

    Raises:
        TypeError: a layer is no product or lookup, has a bias, or has hooks.
    """
    for name, part in model.named_modules():
        if name.rpartition(".")[2] not in (*READ_DIRECTLY, *others):
            continue
        plain = isinstance(part, nn.Linear | nn.Embedding) and getattr(part, "bias", None) is None
        if not plain or part._forward_hooks or part._forward_pre_hooks:
            what = "layer with hooks" if plain else f"layer of the type {type(part).__name__}"
            raise TypeError(
                f"{name} is a {what}: its weight is used without it, so merge adapters into the "
                "weights, and remove hooks, before text is generated or scored"
            )
