"""Patches are made of the states of their bytes, in one of two ways that give the same.

* :class:`KeptBytes` keeps the states of the last bytes. A patch that has ended looks at all of
  them. This works for pieces of many tokens, of which some may be taken back, and for windows of
  several patches.
* :class:`OpenPatches` does what can be done as soon as a byte is there: the largest values so far,
  and the keys and values that the patch will gather from. Where each row has one new token, the end
  of a patch then costs the same however long it is, and reads nothing for rows in which none ended.

For example, the states of a patch of three bytes are 1, 4 and 2. The first way takes the largest of
the three when the patch ends. The second has 1, 4 and 4 after each of them; the first byte of the
next patch begins anew. A byte that is read again changes nothing.

The arithmetic is that of :meth:`model.layers.local_encoder.LocalEncoder.patches`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model import kernels
from model.generation.cached_blocks import JoinedWeights, add_product, normed_product, project
from model.generation.fused import largest_so_far, own_patches, pooled, ungathered
from model.generation.kv_cache import Ring, keeps_shapes, power_of_2
from model.generation.piece import Piece
from model.layers.cross_attention import GatherFromBytes
from model.layers.local_encoder import LocalEncoder

FEW_PATCHES = 4
"""Patches of a row up to which each looks at all bytes for its own: more scatter them."""
SPAN = 32
"""The fewest bytes that a graph gathers from."""


class Gathering(ABC):
    """The states of bytes, from which patches are made."""

    kept: Ring
    """Values that are kept of each byte."""

    def __init__(self, encoder: LocalEncoder, piece: Piece, weights: JoinedWeights):
        self._encoder, self._piece = encoder, piece
        self._layers = [cast(GatherFromBytes, layer) for layer in encoder.cross_attn_layers]
        self._weights = [weights.of(layer.wk, layer.wv) for layer in self._layers]

    @abstractmethod
    def keep(self, part: int, x_TD: Tensor, position_BM: Tensor) -> None:
        """Take up the states of the tokens of the piece after a layer that patches gather from."""

    @abstractmethod
    def vectors(self, patches: int, span: int) -> Tensor:
        """The vectors of the patches that ended in the piece, ``[batch * patches, k, dim]``.

        Args:
            patches: the most that ended in a row.
            span: the most bytes of a row that they gather from.
        """

    @abstractmethod
    def span(self, needed: int) -> int:
        """The span of the graph that gathers from so many bytes."""

    def make_room(self, span: int) -> bool:
        """Prepare for patches that gather from so many bytes. Returns True if anything moved."""
        return self.kept.make_room(span)

    @abstractmethod
    def take(self, row: int, other: "KeptBytes", its_row: int, begin: int, tokens: int) -> None:
        """Go on in a row where another batch is in one of its rows: it has read so many tokens, of
        which those from ``begin`` are of the open patch."""


def gathering(encoder: LocalEncoder, piece: Piece, weights: JoinedWeights) -> Gathering:
    """The way that suits a batch and its device."""
    weight = encoder.tok_embeddings.weight
    layers = (cast(GatherFromBytes, layer) for layer in encoder.cross_attn_layers)
    singly = piece.longest == 1 and piece.window == 1
    even = all(layer.head_dim % 2 == 0 for layer in layers)
    if singly and even and kernels.usable(weight.device, weight.dtype):
        return OpenPatches(encoder, piece, weights)
    return KeptBytes(encoder, piece, weights)


class KeptBytes(Gathering):
    """The states of the last bytes of each row, of which patches are made when they end."""

    def __init__(self, encoder: LocalEncoder, piece: Piece, weights: JoinedWeights):
        super().__init__(encoder, piece, weights)
        like = encoder.tok_embeddings.weight.detach()
        parts, dim = len(encoder.pooled_layers), like.shape[1]
        self.kept = Ring(parts, piece.batch, piece.longest, dim, like=like, grows=True)
        """States after each layer that patches gather from."""

    def keep(self, part: int, x_TD: Tensor, position_BM: Tensor) -> None:
        slot_BM = position_BM % self.kept.slots
        self.kept.write(part, slot_BM, x_TD.view(*position_BM.shape, -1))

    def vectors(self, patches: int, span: int) -> Tensor:
        piece, k = self._piece, self._encoder.k
        offset_S = torch.arange(1 - span, 1, device=piece.end_B.device)
        position_BS = piece.end_B[:, None] + offset_S
        layout = position_BS, piece.bounds(patches), piece.ended_B, piece.window
        states = [self.kept.read(part, position_BS) for part in range(len(self.kept.data))]
        own_BS = own_patches(*layout, patches)
        pooled_ND = pooled_bytes(states[0], own_BS, patches)
        vectors_NE: Tensor = self._encoder.patch_embedding_projection(pooled_ND)
        vectors_XD: Tensor = vectors_NE.unflatten(-1, (k, -1)).flatten(0, 1)
        mask_B1XS = ungathered(*layout, patches, k, states[0].dtype)[:, None]
        crossings = zip(self._layers, self._weights, states, strict=False)
        for layer, weights, states_BSD in crossings:
            vectors_XD = gather_from(layer, weights, vectors_XD, states_BSD, mask_B1XS)
        return vectors_XD.view(-1, k, vectors_XD.shape[-1])

    def span(self, needed: int) -> int:
        return max(power_of_2(needed), SPAN)

    def take(self, row: int, other: "KeptBytes", its_row: int, begin: int, tokens: int) -> None:
        self.kept.take(row, other.kept, its_row, tokens)


class OpenPatches(Gathering):
    """The summary of the open patch of each row, of which each row reads one token at a time."""

    def __init__(self, encoder: LocalEncoder, piece: Piece, weights: JoinedWeights):
        super().__init__(encoder, piece, weights)
        like = encoder.tok_embeddings.weight.detach()
        self._largest_BD = like.new_zeros(piece.batch, like.shape[1])
        """The largest states of the open patch."""
        size, kept = 0, 0
        for layer in self._layers:  # which are alike
            size, kept = layer.head_dim, 2 * layer.wk.out_features // layer.head_dim
        parts, batch = len(self._layers), piece.batch
        self.kept = Ring(parts, batch, 1, kept, size, like=like, grows=True)
        """Keys and values of its bytes for each layer that gathers."""
        self._newest_LBX = like.new_zeros(parts, batch, kept * size)
        """Keys and values of the newest byte."""
        # The kernel turns queries and keys; these angles leave them as they are.
        self._unturned_BF2 = torch.zeros(batch, size // 2, 2, device=like.device)
        self._unturned_BF2[..., 0] = 1

    def keep(self, part: int, x_TD: Tensor, position_BM: Tensor) -> None:
        if part == 0:
            largest_so_far(self._largest_BD, x_TD, position_BM == self._piece.bounds(0))
        if part < len(self._layers):
            layer = self._layers[part]
            kv_BX = normed_product(x_TD, layer.cross_attn_norm_kv, self._weights[part])
            self._newest_LBX[part].copy_(kv_BX)
            kv_B1HE = kv_BX.view(len(x_TD), 1, -1, layer.head_dim)
            self.kept.write(part, position_BM % self.kept.slots, kv_B1HE)

    def vectors(self, patches: int, span: int) -> Tensor:
        """Rows in which no patch ended have vectors, too, which mean nothing."""
        k, batch = self._encoder.k, self._piece.batch
        # Without layers the projection is none, and the caller writes over the result.
        largest_BD = self._largest_BD if self._layers else self._largest_BD.clone()
        vectors_BE: Tensor = self._encoder.patch_embedding_projection(largest_BD)
        vectors_XD: Tensor = vectors_BE.unflatten(-1, (k, -1)).flatten(0, 1)
        for part, layer in enumerate(self._layers):
            q_XE = normed_product(vectors_XD, layer.cross_attn_norm_q, (layer.wq.weight,))
            out_XE = self._gathered(part, q_XE.view(batch, k, -1, layer.head_dim))
            vectors_XD = add_product(vectors_XD, out_XE, layer.wo, times=2)
        return vectors_XD.view(batch, k, -1)

    def _gathered(self, part: int, q_BKHE: Tensor) -> Tensor:
        """Attention of vectors to the bytes of their patch, ``[batch * k, heads * head_dim]``: the
        byte that ends it, and those before it. The heads of all vectors that read the same keys
        stand together."""
        from model.kernels.ring_attention import attend_to_ring

        piece = self._piece
        position_B = piece.positions(1)[:, 0]
        attended_BX: Tensor = attend_to_ring(
            torch.cat([q_BKHE.transpose(1, 2).flatten(1), self._newest_LBX[part]], 1),
            *(self._unturned_BF2, self.kept.data[part]),
            *(position_B, position_B - piece.bounds(0)[:, 0], piece.ended_B, self.kept.slots),
        )
        out_BHKE = attended_BX.view(q_BKHE.transpose(1, 2).shape)
        return out_BHKE.transpose(1, 2).flatten(2).flatten(0, 1)

    def span(self, needed: int) -> int:
        return 0

    def take(self, row: int, other: KeptBytes, its_row: int, begin: int, tokens: int) -> None:
        if begin == tokens:
            return  # the last patch has ended: the next byte begins one
        position_X = torch.arange(begin, tokens, device=self._largest_BD.device)
        its_X = position_X % other.kept.slots
        self._largest_BD[row] = other.kept.data[0, its_row, its_X].amax(0)
        for part, layer in enumerate(self._layers):
            normed_XD = layer.cross_attn_norm_kv(other.kept.data[part, its_row, its_X])
            kv_XHE = project(normed_XD, self._weights[part]).unflatten(-1, (-1, layer.head_dim))
            self.kept.data[part, row, position_X % self.kept.slots] = kv_XHE


def pooled_bytes(states_BSD: Tensor, own_BS: Tensor, patches: int) -> Tensor:
    """See :func:`model.generation.fused.pooled`."""
    if patches <= FEW_PATCHES and keeps_shapes(states_BSD.device):
        return pooled(states_BSD, own_BS, patches)
    # One patch more takes the bytes that belong to none.
    batch, dim = len(states_BSD), states_BSD.shape[-1]
    pooled_ND = states_BSD.new_zeros(batch * patches + 1, dim)
    own_TD = own_BS.flatten()[:, None].expand(-1, dim)
    bytes_TD = states_BSD.flatten(0, 1)
    return pooled_ND.scatter_reduce(0, own_TD, bytes_TD, "amax", include_self=False)[:-1]


def gather_from(
    layer: GatherFromBytes,
    kv_weights: Sequence[Tensor],
    x_XD: Tensor,
    bytes_BSD: Tensor,
    mask_B1XS: Tensor,
) -> Tensor:
    """The vectors of patches that have gathered from bytes, as :class:`GatherFromBytes` computes
    them, written over ``x_XD``; the rows of the batch one after another."""
    batch = len(bytes_BSD)
    kv_BSE = project(layer.cross_attn_norm_kv(bytes_BSD), kv_weights)
    kv_BSHE = kv_BSE.unflatten(-1, (-1, layer.head_dim))
    if layer.groups > 1:
        kv_BSHE = kv_BSHE.repeat_interleave(layer.groups, 2)
    k_BHSE, v_BHSE = kv_BSHE.transpose(1, 2).chunk(2, 1)
    q_XE = normed_product(x_XD, layer.cross_attn_norm_q, (layer.wq.weight,))
    q_BHXE = q_XE.view(batch, -1, k_BHSE.shape[1], layer.head_dim).transpose(1, 2)
    out_BHXE = F.scaled_dot_product_attention(q_BHXE, k_BHSE, v_BHSE, attn_mask=mask_B1XS)
    return add_product(x_XD, out_BHXE.transpose(1, 2).flatten(0, 1).flatten(1), layer.wo, times=2)
