"""Causal attention among documents that begin alike and are read as a tree: what they share is read
once.

The documents ``the_cat``, ``the_cow`` and ``a_dog`` are laid end to end as branches, each of which
leaves out what it shares with the document before it::

    token      t  h  e  _  c  a  t  o  w  a  _  d  o  g
    place      0  1  2  3  4  5  6  7  8  9 10 11 12 13
    position   0  1  2  3  4  5  6  5  6  0  1  2  3  4
    last       8  8  8  8  8  6  6  8  8 13 13 13 13 13

``last`` is the place of the last token that has this one before it in its document: branches are in
such an order (depth first) that a token's followers stand together. So query ``q`` sees key ``k``
exactly if ``k <= q <= last[k]``, and, with a window, if their positions are less than a window
apart. Documents that share nothing are the case in which ``last`` is a document's end.

As in :mod:`model.layers.attention`, queries are handled in blocks, here with a list of the key
blocks that each needs: the cost is that of the tokens which are seen, whatever lies between.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from model.layers import attention
from model.layers.attention import BLOCK, Attend, BlockedAttention

Sees = Callable[[Tensor, Tensor], Tensor]
"""``sees(q, k)``: whether the query at place q sees the key at place k."""


def tree_attention(position_T: Tensor, last_T: Tensor, window: int | None) -> Attend:
    """The attention among branches laid end to end.

    Args:
        position_T: position of each token in its document.
        last_T: place of the last token that follows this one in a document.
        window: keys that a query sees, itself included; None for all before it.
    """
    tokens = len(position_T)
    padding = -tokens % BLOCK
    window = window or tokens
    # Padding is seen by itself alone.
    position_T = F.pad(position_T, (0, padding))
    places_T = torch.arange(len(position_T), device=position_T.device)
    last_T = torch.where(places_T < tokens, F.pad(last_T, (0, padding)), places_T)
    attend: Attend
    if position_T.is_cpu:
        attend = _ListedBlocks(position_T, last_T, window)
    else:
        mask = tree_block_mask(position_T, last_T, window)
        attend = partial(attention._compiled_flex(), mask=mask)
    if not padding:
        return attend

    def attend_padded(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        padded = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q_THD, k_TKD, v_TKD))
        return attend(*padded)[:tokens]

    return attend_padded


def needed_blocks(position_T: Tensor, last_T: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The blocks of keys that each block of queries needs, and perhaps some that it does not.

    A block of keys is needed if one of them has followers among the queries, and the positions in
    both blocks allow that they are less than a window apart. Shapes depend on T alone.

    Args:
        position_T, last_T, window: as for :func:`tree_attention`; a multiple of BLOCK tokens.

    Returns:
        how many blocks each of N blocks needs, and ``[N, N]``, their numbers first.
    """
    number_N = torch.arange(len(position_T) // BLOCK, device=position_T.device)
    position_NB = position_T.view(-1, BLOCK)
    followed_N = last_T.view(-1, BLOCK).amax(1)
    distance_NN = position_NB.amin(1)[:, None] - position_NB.amax(1)
    needed_NN = (followed_N >= number_N[:, None] * BLOCK) & (distance_NN < window)
    needed_NN &= number_N < number_N[:, None]
    needed_NN |= number_N == number_N[:, None]
    return needed_NN.sum(1), needed_NN.int().argsort(dim=1, descending=True, stable=True)


def _sees(position_T: Tensor, last_T: Tensor, window: int) -> Sees:
    def sees(q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q <= last_T[k]) & (position_T[q] - position_T[k] < window)

    return sees


class _ListedBlocks(BlockedAttention):
    """The attention on a CPU: blocks that need equally many blocks are one call."""

    def __init__(self, position_T: Tensor, last_T: Tensor, window: int):
        count_N, index_NN = needed_blocks(position_T, last_T, window)
        sees = _sees(position_T, last_T, window)
        self.groups = []
        within_B = torch.arange(BLOCK)
        for count in count_N.unique().tolist():
            (block_G,) = (count_N == count).nonzero(as_tuple=True)
            q_GB = block_G[:, None] * BLOCK + within_B
            k_GK = (index_NN[block_G, :count, None] * BLOCK + within_B).flatten(1)
            seen = sees(q_GB[:, :, None], k_GK[:, None])
            mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            self.groups.append((block_G, k_GK, mask.unsqueeze(1)))


def tree_block_mask(position_T: Tensor, last_T: Tensor, window: int) -> BlockMask:
    """FlexAttention's mask, for a GPU; arguments as for :func:`needed_blocks`."""
    count_N, index_NN = needed_blocks(position_T, last_T, window)
    sees = _sees(position_T, last_T, window)

    def inside(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(q, k)

    tokens = len(position_T)
    return BlockMask.from_kv_blocks(
        count_N.int()[None, None],
        index_NN.int()[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=inside,
        seq_lengths=(tokens, tokens),
    )
