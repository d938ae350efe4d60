"""Keys and values of the tokens that were read, so that reading can go on.

A stack with a window keeps a ring of its last positions; one without keeps them all. The rows of a
batch may have read different numbers of tokens. The position that a slot holds follows from the
number that a row has read: tokens are taken back by lowering that number, and nothing is erased.
With 4 slots, for example, position p is in slot p modulo 4, and a row that has read 6 tokens holds
the positions 4, 5, 2, 3.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.attention import Attend

PIECE = 256
"""The most tokens of a row that are read at a time."""


class KeyValueCache:
    """The keys and values of every layer of one stack of blocks."""

    def __init__(self, n_layers: int, window: int | None):
        """
        Args:
            window: keys that a query sees, itself included; None for all before it.
        """
        self.n_layers, self.window = n_layers, window
        # The window and the longest piece: a piece overwrites only what no later token sees, even
        # if all of the piece is taken back.
        self.slots = window + PIECE if window else PIECE
        self._cached: dict[int, tuple[Tensor, Tensor]] = {}

    def attends(self, read_B: Tensor, columns: int, reach_BM: Tensor | None = None) -> list[Attend]:
        """The attention of each layer for the next tokens of each row; it keeps their keys and
        values.

        Args:
            read_B: tokens that each row has read before.
            columns: tokens to read now, at most PIECE. A row that has fewer overwrites the others
                when it reads on.
            reach_BM: how far each token may look back, if not to the start of its row.
        """
        most = int(read_B.max()) + columns
        if self.window is None and most > self.slots:
            self._grow(max(most, 2 * self.slots))
        position_BM = read_B[:, None] + torch.arange(columns, device=read_B.device)
        # A slot holds the last position that is its index modulo the number of slots.
        slot_R = torch.arange(min(self.slots, most), device=read_B.device)
        last_B1 = position_BM[:, -1:]
        held_BR = last_B1 - (last_B1 - slot_R) % self.slots
        back_BMR = position_BM[:, :, None] - held_BR[:, None]
        seen_BMR = (back_BMR >= 0) & (held_BR >= 0)[:, None]
        if self.window is not None:
            seen_BMR &= back_BMR < self.window
        if reach_BM is not None:
            seen_BMR &= back_BMR <= reach_BM[:, :, None]
        index_BM = position_BM % self.slots
        return [
            functools.partial(self._attend, layer, index_BM, seen_BMR[:, None])
            for layer in range(self.n_layers)
        ]

    def _attend(
        self, layer: int, index_BM: Tensor, seen_B1MR: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        batch, columns = index_BM.shape
        q_BMHD, k_BMHD, v_BMHD = (x.view(batch, columns, *x.shape[1:]) for x in (q, k, v))
        if layer not in self._cached:
            shape = (batch, self.slots, *k.shape[1:])
            self._cached[layer] = (k.new_zeros(shape), v.new_zeros(shape))
        keys_BRHD, values_BRHD = self._cached[layer]
        row_B1 = torch.arange(batch, device=q.device)[:, None]
        keys_BRHD[row_B1, index_BM] = k_BMHD
        values_BRHD[row_B1, index_BM] = v_BMHD
        used = seen_B1MR.shape[-1]
        out_BHMD = F.scaled_dot_product_attention(
            q_BMHD.transpose(1, 2),
            keys_BRHD[:, :used].transpose(1, 2),
            values_BRHD[:, :used].transpose(1, 2),
            attn_mask=seen_B1MR,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out_BHMD.transpose(1, 2).reshape(q.shape)

    def _grow(self, slots: int) -> None:
        more = slots - self.slots
        for layer, cached in self._cached.items():
            keys, values = (F.pad(x, (0, 0, 0, 0, 0, more)) for x in cached)
            self._cached[layer] = keys, values
        self.slots = slots
