"""A stack of transformer blocks that reads on: new tokens only, earlier ones from a cache.

The arithmetic is that of :class:`model.layers.transformer.Block`, in few kernels, because for
single tokens the number of kernels decides the speed. On a GPU matrices that multiply the same
input are one (a copy of them); sums are part of the products (``addmm``). A block is 10 kernels
that way, instead of 33. With those of :mod:`model.kernels` it is 8 where each row has one new
token, and 5 where these tokens are few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import kernels
from model.generation.fused import gated, turned
from model.generation.kv_cache import KeyValueCache, View, keeps_shapes
from model.layers.transformer import Block


class JoinedWeights:
    """The weights of layers that read the same input, as one matrix on a GPU. Batches of the same
    model share them."""

    def __init__(self) -> None:
        self._known: dict[tuple[nn.Linear, ...], tuple[Tensor, ...]] = {}

    def of(self, *linears: nn.Linear) -> tuple[Tensor, ...]:
        """The weights for :func:`project`."""
        if linears not in self._known:
            weights = tuple(linear.weight.detach() for linear in linears)
            together = keeps_shapes(weights[0].device)
            self._known[linears] = (torch.cat(weights),) if together else weights
        return self._known[linears]


def project(x_TD: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The products with all weights, next to one another."""
    outputs = [F.linear(x_TD, weight) for weight in weights]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def normed_product(
    x_TD: Tensor, norm: nn.RMSNorm, weights: tuple[Tensor, ...], *, gate: bool = False
) -> Tensor:
    """``project(norm(x), weights)``, or ``silu(a) * b`` of its two halves."""
    if kernels.few(x_TD, weights[0]):
        from model.kernels import few_rows

        (weight_ED,) = weights
        assert norm.eps is not None
        out_TE: Tensor = few_rows.normed_product(x_TD, norm.weight, norm.eps, weight_ED, gate)
        return out_TE
    y_TE = project(norm(x_TD), weights)
    return gated(y_TE) if gate else y_TE


def add_product(x_TD: Tensor, y_TE: Tensor, linear: nn.Linear, times: int = 1) -> Tensor:
    """``times * x + linear(y)``, written over x."""
    if kernels.few(x_TD, linear.weight):
        from model.kernels import few_rows

        few_rows.added_product(x_TD, y_TE, linear.weight, times)
        return x_TD
    return x_TD.addmm_(y_TE, linear.weight.t(), beta=times)


@dataclass(frozen=True)
class _Layer:
    block: Block
    qkv: tuple[Tensor, ...]
    gated: tuple[Tensor, ...]


class CachedBlocks:
    """The blocks of one stack and the keys and values that it keeps."""

    def __init__(
        self,
        layers: nn.ModuleList,
        batch: int,
        window: int | None,
        longest: int,
        weights: JoinedWeights,
    ):
        """
        Args:
            window: keys that a query sees, itself included; None for all before it.
            longest: the most tokens of a row that are read at a time.
        """
        blocks = [cast(Block, block) for block in layers]
        self.layers = []
        for block in blocks:
            of, fed = block.attention, block.feed_forward
            self.layers.append(
                _Layer(block, weights.of(of.wq, of.wk, of.wv), weights.of(fed.w1, fed.w3))
            )
        attention = blocks[0].attention
        self.head_dim = attention.head_dim
        self.heads = attention.wq.out_features // self.head_dim
        self.kv_heads = attention.wk.out_features // self.head_dim
        self.cache = KeyValueCache(
            len(blocks),
            batch,
            self.kv_heads,
            self.head_dim,
            window,
            longest,
            attention.wk.weight.detach(),
        )

    def view(
        self,
        position_BM: Tensor,
        reach_BM: Tensor | None = None,
        needed_B: Tensor | None = None,
    ) -> View:
        """What tokens see; see :meth:`KeyValueCache.view`."""
        return self.cache.view(position_BM, self.heads // self.kv_heads, reach_BM, needed_B)

    def run_layer(self, i: int, x_TD: Tensor, rotary_TF2: Tensor, view: View) -> Tensor:
        """States after layer ``i``, ``[tokens, dim]``, written over ``x_TD``, those before it."""
        layer = self.layers[i]
        block = layer.block
        qkv_TE = normed_product(x_TD, block.attention_norm, layer.qkv)
        if view.mask_B1MR is None:
            attended_TD = self.cache.attend_singly(i, qkv_TE, rotary_TF2, view)
        else:
            heads_TXD = qkv_TE.unflatten(-1, (-1, self.head_dim))
            heads_TXD = turned(heads_TXD, rotary_TF2, self.heads + self.kv_heads)
            q_THD, kv_TXD = heads_TXD[:, : self.heads], heads_TXD[:, self.heads :]
            attended_TD = self.cache.attend(i, q_THD, kv_TXD, view)
        x_TD = add_product(x_TD, attended_TD, block.attention.wo)
        fed_TF = normed_product(x_TD, block.ffn_norm, layer.gated, gate=True)
        return add_product(x_TD, fed_TF, block.feed_forward.w2)

    def run(self, x_TD: Tensor, rotary_TF2: Tensor, view: View) -> Tensor:
        """States after all layers, written over those before them."""
        for i in range(len(self.layers)):
            x_TD = self.run_layer(i, x_TD, rotary_TF2, view)
        return x_TD
